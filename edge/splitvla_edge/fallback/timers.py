"""How long the robot may hold or be without the server, and whether it is measured still."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

_EPSILON_S = 1e-9


@dataclass(slots=True)
class DrainTimer:
    """Time that drains at 1 and refills more slowly, so that what comes and goes uses it up too."""

    capacity_s: float
    refill: float
    left_s: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.left_s):  # one that a snapshot restores has been drained already
            self.left_s = self.capacity_s

    def drain(self, elapsed_s: float) -> None:
        self.left_s -= elapsed_s

    def fill(self, elapsed_s: float) -> None:
        self.left_s = min(self.capacity_s, self.left_s + elapsed_s * self.refill)

    def empty(self) -> bool:
        return self.left_s <= 0.0


class Stillness:
    """The robot is still when no measured coordinate has left a small box for long enough.

    Mutable state: the box's middle, and since when. A robot that reports no position is never still.
    """

    def __init__(self, still_s: float, tolerance: float) -> None:
        self._still_s, self._tolerance = still_s, tolerance
        self._middle: tuple[float, ...] | None = None
        self._since = math.inf

    def see(self, now: float, position: tuple[float, ...] | None) -> None:
        if position is None or not all(map(math.isfinite, position)):
            self._middle, self._since = None, math.inf
            return
        if self._left_box(position):
            self._middle, self._since = position, now

    def _left_box(self, position: tuple[float, ...]) -> bool:
        middle = self._middle
        if middle is None or len(middle) != len(position):
            return True
        return max(map(abs, map(operator.sub, position, middle)), default=0.0) > self._tolerance

    def still(self, now: float) -> bool:
        return now - self._since + _EPSILON_S >= self._still_s


class Absence:
    """For how long a fault has been gone, and how many frames came since. Mutable state: when it was last there."""

    def __init__(self) -> None:
        self._last = -math.inf
        self._frame_at: float | None = None
        self.frames = 0

    def see(self, now: float, there: bool, frame_at: float | None) -> None:
        if there:
            self._last, self.frames = now, 0
        elif frame_at != self._frame_at:
            self.frames += 1
        self._frame_at = frame_at

    def lasted_s(self, now: float) -> float:
        return now - self._last
