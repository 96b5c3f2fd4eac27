"""The server's log: seldom enough to be read, and written by whoever may wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

_WINDOW_S = 10.0
_MOST = 20  # lines of one kind in a window: a robot that is refused at 5 Hz, or a peer that floods, fills no disk


@dataclass(slots=True)
class _Kind:
    """Mutable: since when its lines are counted, and how many there were."""

    since: float
    lines: int = 0


class SeldomHandler(logging.Handler):
    """Lines of one statement of the code are one kind; what is too many is counted, and told with the next that is not.

    say: gets each line; it may neither wait nor raise, because it is called by the event loop and the GPU's thread.
    """

    def __init__(self, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._say, self._clock = say, clock
        self._kinds: dict[tuple[str, int], _Kind] = {}  # by file and line, not by text, which a peer might choose

    def emit(self, record: logging.LogRecord) -> None:
        now = self._clock()
        kind = self._kinds.setdefault((record.pathname, record.lineno), _Kind(now))
        left_out = 0
        if now - kind.since >= _WINDOW_S:
            left_out = max(0, kind.lines - _MOST)
            kind.since, kind.lines = now, 0
        kind.lines += 1
        if kind.lines <= _MOST:
            more = f" (and {left_out} more such lines before it)" if left_out else ""
            try:
                line = self.format(record)
            except Exception as error:  # noqa: BLE001 - a slip of who logs must not end the pass that it logs of
                line = f"{record.levelname} {record.msg!r} can't be written: {error!r}"
            self._say(f"{line}{more}")
