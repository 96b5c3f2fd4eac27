"""A small policy of OpenVLA's architecture that really does tasks: its data, its training and its checkpoint."""
