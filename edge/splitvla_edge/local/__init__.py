"""A policy of the robot's own for when the server is away: a small ONNX graph, licensed by agreeing with the server.

graph: what such a file must look like, and running it. agreement: how often it said what the server said, on the same
frame. runner: its thread. recording: what one is trained on. When it may act is decided by the fallback machine alone.
"""
