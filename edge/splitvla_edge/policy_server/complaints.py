"""What the operator reads: why a client got no action, seldom enough to be read, and that it is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from splitvla_shared.errors import (
    DeadlineMissed,
    EarlyStop,
    LinkError,
    Overloaded,
    SpecMismatch,
    SplitVLAError,
    Unreachable,
)
from splitvla_shared.texts import one_line

_AGAIN_S = 30.0
# What to do about errors whose own text is for every owner of a policy; the first class that fits.
_REMEDIES: tuple[tuple[type[SplitVLAError], str], ...] = (
    (Unreachable, "start `splitvla-cloud serve` there, or check --server and the network; it is tried again by itself"),
    (DeadlineMissed, "give --deadline-ms more, --scheme less, or look for what is slow with `splitvla-edge doctor`"),
    (Overloaded, "ask less often, or serve fewer robots from there"),
    (SpecMismatch, "serve the half of the same split there, and it goes on by itself"),
    (EarlyStop, "the model may not know this scene; `splitvla-cloud serve --decode action-only` always ends an answer"),
)


def remedied(error: SplitVLAError) -> str:
    """The error in one line, with what to do about it."""
    remedy = next((text for kind, text in _REMEDIES if isinstance(error, kind)), None)
    return one_line(str(error)) if remedy is None else f"{one_line(str(error))}; {remedy}"


@dataclass(slots=True)
class _Kind:
    """told_at: when its last line was printed. untold: how often it came since."""

    told_at: float
    untold: int = 0


class Story:
    """Which errors are worth a line. Pure. Mutable state: each kind's last line, and whether actions are to come back.

    A kind is told when it first comes, then every half minute with how often it came.
    """

    def __init__(self) -> None:
        self._kinds: dict[tuple[type[SplitVLAError], bool], _Kind] = {}  # by error, and whether it is the link's
        self._lost = False

    def failed(self, now: float, what: str, error: SplitVLAError) -> str | None:
        """what: that got no action, for people."""
        return self._told(now, what, error, of_link=isinstance(error, LinkError))

    def refused(self, now: float, what: str, error: SplitVLAError) -> str | None:
        """what: that was turned away at the port; this is no outage that an action ends."""
        return self._told(now, what, error, of_link=False)

    def answered(self) -> str | None:
        """An action was given, or a server found: after an error of the link that is news."""
        if not self._lost:
            return None
        self._lost = False
        # The next outage is told when it comes, however soon; a client's own mistakes are not over with it.
        lost = sum(kind.untold for (_, of_link), kind in self._kinds.items() if of_link)
        self._kinds = {name: kind for name, kind in self._kinds.items() if not name[1]}
        return f"answers come again{f', after {lost} more errors' if lost else ''}"

    def _told(self, now: float, what: str, error: SplitVLAError, *, of_link: bool) -> str | None:
        kind = self._kinds.get((type(error), of_link))
        if kind is not None and now - kind.told_at < _AGAIN_S:
            kind.untold += 1
            return None
        self._lost = self._lost or of_link
        self._kinds[type(error), of_link] = _Kind(now)
        more = f" (and {kind.untold} times since the last such line)" if kind is not None and kind.untold else ""
        return f"no action for {what}: {remedied(error)}{more}"


class Complaints:
    """The story, told line by line. Thread-safe: the policy's thread and the port's tell it.

    say: gets each line, under the lock of both threads, so that it may neither wait nor raise.
    """

    def __init__(self, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._story, self._say, self._clock = Story(), say, clock
        self._lock = threading.Lock()

    def failed(self, what: str, error: SplitVLAError) -> None:
        with self._lock:
            self._tell(self._story.failed(self._clock(), what, error))

    def refused(self, what: str, error: SplitVLAError) -> None:
        with self._lock:
            self._tell(self._story.refused(self._clock(), what, error))

    def answered(self) -> None:
        with self._lock:
            self._tell(self._story.answered())

    def _tell(self, line: str | None) -> None:
        if line is not None:
            self._say(line)
