"""The vision encoder and projector in ONNX Runtime: which hardware, which last layer, and is it still the model."""
