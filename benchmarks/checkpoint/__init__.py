"""Random checkpoints of any size in openvla-7b's exact layout: what the tests, the demo and the benchmarks run on."""

from __future__ import annotations

from benchmarks.checkpoint.sizes import PRESETS, Layout, Sizes
from benchmarks.checkpoint.writer import lay_out, write_checkpoint

__all__ = ["PRESETS", "Layout", "Sizes", "lay_out", "write_checkpoint"]
