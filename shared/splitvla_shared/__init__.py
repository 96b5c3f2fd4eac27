"""What the robot and the GPU host agree on: nouns, errors, the model's spec, actions, codec, wire messages."""

__version__ = "0.1.0"
