"""Whole messages over a link, one at a time, on simulated time: when a payload arrives, and what a cancelled one costs.

For simulations that send a payload and ask when it is there. A message that is cancelled leaves the link busy with what
the sender's socket had already taken, as a gRPC call that missed its deadline does.
"""

from __future__ import annotations

import math
import random

from benchmarks.link.conditions import Conditions

SOCKET_BYTES = 64 * 1024


class MessageLink:
    """One direction, whose conditions begin at 0. Mutable state: the message under way, and a seeded generator."""

    def __init__(self, conditions: Conditions, *, seed: int = 0, socket_bytes: int = SOCKET_BYTES) -> None:
        self.conditions = conditions
        self._random = random.Random(seed)
        self._socket_bytes = socket_bytes
        self._began, self._size, self._left_at = 0.0, 0, 0.0

    def send(self, now: float, size: int) -> float:
        """When it will have arrived, infinity when it never does. The message before counts as cancelled by now."""
        start = max(now, self._free_at(now))
        self._began, self._size = start, size
        self._left_at = self.conditions.finish(start, size, 0.0)
        if math.isinf(self._left_at):
            return math.inf
        jitter_s = abs(self._random.gauss(0.0, self.conditions.jitter_ms / 1e3)) if self.conditions.jitter_ms else 0.0
        return self._left_at + self.conditions.delay_s(self._left_at, 0.0) + jitter_s

    def _free_at(self, now: float) -> float:
        """When the last message is out of the way."""
        if self._left_at <= now:
            return self._left_at
        gone = self.conditions.carried(self._began, now, 0.0) if now > self._began else 0.0
        left = min(max(0.0, self._size - gone), self._socket_bytes)
        return self.conditions.finish(max(now, self._began), left, 0.0)
