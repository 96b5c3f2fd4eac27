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
_WORTH_SHARING = 0.95  # of the time without; what is known of costs is no more exact than that
_DOUBTED = 5.0  # times as long as expected: the process or the machine stood still, unless the next pass is like it
_RECENT = 64  # passes
_FLOOR_WINDOW_S = 2.0  # a floor that nothing has confirmed for so long is forgotten, or a slow spell would never end


class PassCost:
    """Seconds a pass with so many new frames takes. Owned like FrameQueue."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=_RECENT)  # when it ended, new frames, seconds
        self._passes: float | None = None
        self._doubting = False

    def learn(self, frames: int, seconds: float, now: float) -> None:
        """frames: new ones in the pass that ended `now`; 0 for one that only went on with others.

        A pass in which the process was stopped says nothing of the next one. It would be all that is known of the last
        `_FLOOR_WINDOW_S`, and as the floor have every frame refused for so long. Passes without a new frame do not tell
        what one with some takes, which may well be ten times as long.
        """
        alike = (mean for known, mean in self._means.items() if known <= frames and bool(known) is bool(frames))
        expected = max(alike, default=0.0)
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
        self._forget(now)
        least = min((seconds for _, _, seconds in self._recent), default=0.0)
        return least if any(frames == 1 for _, frames, _ in self._recent) else min(least, self.of(1))

    def usual(self, now: float) -> float:
        """What nine of ten passes with one new frame take at most: a deadline before that will hardly be met."""
        return self.of(1) * self.spread(now)

    def spread(self, now: float) -> float:
        """What nine of ten recent passes took at most, as a multiple of what is expected of such a pass; at least 1."""
        self._forget(now)
        expected = {frames: self.of(frames) for frames in {frames for _, frames, _ in self._recent}}
        shares = sorted(seconds / expected[frames] for _, frames, seconds in self._recent if expected[frames])
        return max(1.0, shares[int(_USUAL_SHARE * (len(shares) - 1))]) if shares else 1.0

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - _FLOOR_WINDOW_S:
            self._recent.popleft()


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

    As many as have the waiting ones answered soonest on the average (`_share`), fewer where one more would make
    somebody late who would not be late anyway (of those chosen and of those `running`), or be late itself. None while
    the running ones, who wait for it, lose more time by it than the waiting ones gain, all of whom would else come
    `wait_s` later, when those are done.
    """
    most, held = _share(len(deadlines), room, cost), list(running)
    spread = cost.spread(now)
    for count, deadline in enumerate(deadlines[:most], start=1):
        before, after = now + spread * cost.of(count - 1), now + spread * cost.of(count)
        # A frame that will hardly be in time lengthens no pass for those chosen before it.
        if count > 1 and deadline <= after:
            return count - 1
        if len(running) * (cost.of(count) - cost.of(0)) > len(deadlines) * wait_s:
            return count - 1
        if any(before <= other < after for other in held):
            return count - 1
        held.append(deadline)
    return most


def _share(waiting: int, room: int, cost: PassCost) -> int:
    """How many together have the waiting ones answered soonest on the average; one, where that gains too little."""
    # Of equals the most, or what costs nothing as far as is known would never be tried.
    means = {share: _mean_wait(waiting, share, cost) for share in range(min(waiting, room), 0, -1)}
    best = min(means, key=means.__getitem__, default=0)
    return best if best and means[best] <= _WORTH_SHARING * means[1] else min(best, 1)


def _mean_wait(waiting: int, share: int, cost: PassCost) -> float:
    """Mean seconds to an answer, to the microsecond, where so many at a time are served, one batch after another.

    Where a prefill of many takes `p` for each and the further passes take `r` for one or many, that is least with
    `sqrt(waiting * r / p)` together: the longer the queue, the more is gained by what they share.
    """
    rest_s = cost.rest(1)  # the further passes of an answer serve all that share them
    full, left = divmod(waiting, share)
    whole_s = cost.of(share) + rest_s
    total_s = share * whole_s * full * (full + 1) / 2
    if left:
        total_s += left * (full * whole_s + cost.of(left) + rest_s)
    return round(total_s / waiting, 6)
