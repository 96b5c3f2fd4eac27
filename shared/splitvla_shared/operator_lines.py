"""Lines for the operator on standard error, which may hang (a stopped terminal) or be gone (a lost session)."""

from __future__ import annotations

import contextlib
import io
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

_WHO = "splitvla-edge: "
_QUEUE_LINES = 64
_LOOK_S = 0.5  # between looks for a line of its own


def say(text: str, stream: TextIO | None = None, prefix: str = _WHO) -> None:
    """Print a line, to standard error where no stream is named; may wait, never raises when nobody can be told."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        print(f"{prefix}{text}\n", end="", file=sys.stderr if stream is None else stream, flush=True)


def _own_way(stream: TextIO | None) -> TextIO | None:
    """To the same file, without a buffer: a thread that hangs there holds no lock that the process's end waits for."""
    stream = sys.stderr if stream is None else stream
    try:
        raw = io.FileIO(stream.fileno(), "w", closefd=False)
    except (AttributeError, OSError, ValueError):  # it is none, closed, or no file
        return stream
    return io.TextIOWrapper(raw, stream.encoding, "backslashreplace", write_through=True)


class Printer:
    """Says lines on a thread of its own, for whoever must neither wait nor fail.

    lines: as many wait for a terminal that hangs; of more the oldest are dropped: the last ones tell how it ended.
    look: asked now and then, while nothing is queued, for a line about whoever can say none himself.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        look: Callable[[], str | None] | None = None,
        prefix: str = _WHO,
        lines: int = _QUEUE_LINES,
    ) -> None:
        self._stream, self._look, self._prefix = _own_way(stream), look, prefix
        self._queue: queue.Queue[str | None] = queue.Queue(lines)
        self._thread = threading.Thread(target=self._print, name="operator's lines", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """Returns at once."""
        with contextlib.suppress(queue.Full, queue.Empty):
            if self._queue.full():
                self._queue.get_nowait()
            self._queue.put_nowait(text)

    def close(self, timeout_s: float = 1.0) -> None:
        """Print what is queued, for at most `timeout_s`."""
        until = time.monotonic() + timeout_s
        with contextlib.suppress(queue.Full):  # the terminal hangs: the thread ends with the process
            self._queue.put(None, timeout=timeout_s)
            self._thread.join(max(0.0, until - time.monotonic()))

    def _print(self) -> None:
        while (text := self._next()) is not None:
            say(text, self._stream, self._prefix)

    def _next(self) -> str | None:
        """The next line; None at the end."""
        while self._look is not None:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=_LOOK_S)
            if (text := self._look()) is not None:
                return text
        return self._queue.get()
