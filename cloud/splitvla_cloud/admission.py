"""How many waiting frames the next forward pass takes, by what passes have cost so far.

Rules of this file: no clock; `now` and deadlines are monotonic seconds. The model of cost is what was measured: a mean
for each number of new frames, and how many passes an answer takes (one where its draft is right). What was never
measured is taken to cost no more than less work did, so that it is tried.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

_WEIGHT = 0.2  # of the newest pass in the mean
_USUAL_SHARE = 0.9  # of recent passes, which took no longer than what is usual
_DOUBTED = 5.0  # times as long as expected: the process or the machine stood still, unless the next pass is like it
_FLOOR_WINDOW_S = 2.0  # a floor that nothing has confirmed for so long is forgotten, or a slow spell would never end


class PassCost:
    """Seconds a pass with so many new frames takes. Owned like FrameQueue."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}
        self._recent: deque[tuple[float, int, float]] = deque()  # when it ended, new frames, seconds
        self._passes: float | None = None
        self._doubting = False

    def learn(self, frames: int, seconds: float, now: float) -> None:
        """frames: new ones in the pass that ended `now`; 0 for one that only went on with others.

        A pass in which the process was stopped says nothing of the next one. It would be all that is known of the last
        `_FLOOR_WINDOW_S`, and as the floor have every frame refused for so long.
        """
        expected = self.of(frames)
        self._doubting = not self._doubting and 0.0 < _DOUBTED * expected < seconds
        if self._doubting:
            return
        mean = self._means.get(frames, seconds)
        self._means[frames] = mean + _WEIGHT * (seconds - mean)
        if frames:
            self._recent.append((now, frames, seconds))

    def learn_answer(self, passes: int) -> None:
        """passes: from the one that a frame came in with to the one that completed its answer, at least 1."""
        mean = passes if self._passes is None else self._passes
        self._passes = mean + _WEIGHT * (passes - mean)

    def rest(self, passes: int, least: int = 0) -> float:
        """What is left of an answer after so many passes, if no frame comes in: what answers took on the average.

        least: passes that it will take at least; one that still runs takes another, whatever others took.
        """
        return max(least, (self._passes or 0.0) - passes) * self.of(0)

    def of(self, frames: int) -> float:
        """Expected; that of the next smaller number where this one was never measured, 0 without any."""
        return max((mean for known, mean in self._means.items() if known <= frames), default=0.0)

    def floor(self, now: float) -> float:
        """The least that an answer took of late: a deadline before that can't be met. 0 when nothing is known.

        Passes of many frames say nothing of what one alone takes: that is known from before where none was alone.
        """
        least = min(self._lately(now), default=0.0)
        return least if any(frames == 1 for _, frames, _ in self._recent) else min(least, self.of(1))

    def usual(self, now: float) -> float:
        """What nine of ten answers took of late at most: a deadline before that will hardly be met."""
        lately = sorted(self._lately(now))
        return lately[int(_USUAL_SHARE * (len(lately) - 1))] if lately else 0.0

    def _lately(self, now: float) -> list[float]:
        while self._recent and self._recent[0][0] < now - _FLOOR_WINDOW_S:
            self._recent.popleft()
        return [seconds for _, _, seconds in self._recent]


FREE = PassCost()  # nothing learned: every pass is free


def choose(
    deadlines: Sequence[float],
    now: float,
    room: int,
    cost: PassCost,
    running: Sequence[float] = (),
    wait_s: float = math.inf,
) -> int:
    """How many of the frames with these deadlines, first come first served, the next pass should take.

    A deadline here is that of the pass: what is left of an answer after it has been taken off.

    One more is taken while there is room, while that makes nobody late who would not be late anyway (of those chosen
    and of those `running`), while it will itself be in time with the others, while the answers of all are there before
    those of the frames, one at a time, would be on the average, and while the running ones, who wait for it, lose less
    time by it than the new ones gain, who would else wait for `wait_s` until those are done.
    """
    held, rest_s = list(running), cost.rest(1)  # the further passes of an answer serve all that share them
    for count, deadline in enumerate(deadlines[:room], start=1):
        before, after = now + cost.of(count - 1), now + cost.of(count)
        # A frame that will be late lengthens no pass for those chosen before it.
        if count > 1 and (deadline <= after or cost.of(count) + rest_s > (count + 1) / 2 * (cost.of(1) + rest_s)):
            return count - 1
        if len(running) * (cost.of(count) - cost.of(0)) > count * wait_s:
            return count - 1
        if any(before <= other < after for other in held):
            return count - 1
        held.append(deadline)
    return min(len(deadlines), room)
