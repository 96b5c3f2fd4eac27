"""Camera frames to the square that the encoder takes: the pipelines of the reference and its evaluation scripts."""
