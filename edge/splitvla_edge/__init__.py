"""The robot's side: camera frame to patch embeddings, over the wire, and back as an action.

Importing this package loads none of onnxruntime, grpc or OpenCV: the control process imports it and must stay light.
`EdgePolicy` is resolved on first use (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splitvla_edge.policy import EdgePolicy

__all__ = ["EdgePolicy"]


def __getattr__(name: str) -> object:
    if name == "EdgePolicy":
        from splitvla_edge.policy import EdgePolicy

        return EdgePolicy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
