"""The server's log: seldom enough to be read, and written by whoever may wait."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

_WINDOW_S = 10.0
# In a window: a robot that is refused at 5 Hz must not hide another's first refusal, nor fill a disk.
_MOST_OF_A_KIND = 10
_MOST_OF_SESSIONS = 200  # lines that name one, all together: a peer may take a new one for each call


class SeldomHandler(logging.Handler):
    """Lines of one statement of the code about one session are one kind; what is too many is left out and counted.

    A session is what the statement names as `extra={"session": ...}`. What names none is only held to its kind's share:
    no peer's noise may hide that the server leaves, or that the GPU is gone.

    say: gets each line; it may neither wait nor raise, because it is called by the event loop and the GPU's thread.
    """

    def __init__(self, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._say, self._clock = say, clock
        self._since = clock()
        self._lines: Counter[tuple[str, int, object]] = Counter()  # by file, line and session; of this window
        self._of_sessions = self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self._clock() - self._since >= _WINDOW_S:
            self._begin_window()
        session = getattr(record, "session", None)
        kind = (record.pathname, record.lineno, session)
        full = session is not None and self._of_sessions >= _MOST_OF_SESSIONS
        if full or self._lines[kind] >= _MOST_OF_A_KIND:
            self._left_out += 1
            return
        self._lines[kind] += 1
        self._of_sessions += session is not None
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a slip of who logs must not end the pass that it logs of
            line = f"{record.levelname} {record.msg!r} can't be written: {error!r}"
        self._say(line)

    def close(self) -> None:
        self._begin_window()
        super().close()

    def _begin_window(self) -> None:
        now = self._clock()
        if self._left_out:
            self._say(f"{self._left_out} more lines like those above were left out in {now - self._since:.0f} s")
        self._since, self._of_sessions, self._left_out = now, 0, 0
        self._lines.clear()
