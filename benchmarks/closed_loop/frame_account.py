"""What episodes say about frames: how often a token is the one of the step before, and how large a JPEG would be."""

from __future__ import annotations

import itertools

import numpy as np
import simplejpeg

from benchmarks.closed_loop.rollout import Rollout
from benchmarks.report import percentiles

_QUALITY = 90


class FrameAccount:
    """Mutable state: for every pair of successive steps, which tokens were equal; for every frame, its JPEG's size."""

    def __init__(self) -> None:
        self._equal: list[list[bool]] = []
        self._bytes: list[float] = []

    def add(self, rollout: Rollout) -> None:
        for before, after in itertools.pairwise(rollout.steps):
            if len(before.tokens) == len(after.tokens) > 0:
                self._equal.append([a == b for a, b in zip(before.tokens, after.tokens, strict=True)])
        for step in rollout.steps:
            jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(step.image), quality=_QUALITY, colorsubsampling="420")
            self._bytes.append(float(len(jpeg)))

    def notes(self) -> list[str]:
        """One sentence on each; none on what was not seen."""
        notes = []
        if self._equal:
            shares = ", ".join(f"{share:.2f}" for share in np.mean(self._equal, axis=0))
            notes.append(
                f"Share of {len(self._equal)} pairs of successive steps with the same token, by dimension: {shares} "
                "(what the previous action would be worth as a draft)."
            )
        if self._bytes:
            p50, p99, _ = percentiles(self._bytes)
            notes.append(f"JPEG of a frame at quality {_QUALITY} (4:2:0): p50 {p50:,.0f} B, p99 {p99:,.0f} B.")
        return notes
