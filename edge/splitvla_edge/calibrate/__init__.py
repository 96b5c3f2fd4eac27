"""Learn from a robot's own frames how to send its embeddings in few bytes; see docs/codec.md."""
