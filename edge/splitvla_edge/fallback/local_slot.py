"""The newest answer of the edge's own policy, and whether it is fit to act on."""

from __future__ import annotations

import math

from splitvla_edge.fallback.messages import LocalChunk
from splitvla_edge.fallback.settings import FallbackSettings


class LocalSlot:
    """Owned by the fallback machine. Mutable state: the newest answer, and its next action."""

    def __init__(self, settings: FallbackSettings, dims: int, dt_s: float) -> None:
        self._settings, self._dims, self._dt_s = settings, dims, dt_s
        self.chunk: LocalChunk | None = None
        self.cursor = 0

    def see(self, chunk: LocalChunk | None, past: int) -> None:
        """Take a newer answer. past: actions executed since its frame was taken, which it therefore begins after."""
        if chunk is None or (self.chunk is not None and chunk.number <= self.chunk.number):
            return
        shaped = len(chunk.actions) >= 1 and all(len(row) == self._dims for row in chunk.actions)
        if shaped and all(math.isfinite(value) for row in chunk.actions for value in row):
            self.chunk, self.cursor = chunk, past if len(chunk.actions) > 1 else 0
        else:
            self.chunk = None

    def forget(self) -> None:
        self.chunk = None

    def healthy(self, now: float, usable_after: float, *, licence_needed: bool) -> bool:
        """A finite answer for a recent frame is there, and its agreement with the server licenses it to act."""
        chunk = self.chunk
        if chunk is None or not usable_after <= chunk.captured_at <= now:
            return False
        young = now - chunk.captured_at <= self._settings.max_age_s(self._dt_s, len(chunk.actions))
        return young and (not licence_needed or self.licensed())

    def licensed(self) -> bool:
        chunk, settings = self.chunk, self._settings
        if chunk is None:
            return False
        return chunk.samples >= settings.local_samples and chunk.agreement >= settings.local_agreement

    def take(self) -> tuple[int, tuple[float, ...]] | None:
        """The next action and its index; None when all of them were executed."""
        chunk, index = self.chunk, self.cursor
        if chunk is None or index >= len(chunk.actions):
            return None
        self.cursor += 1
        return index, chunk.actions[index]
