"""Lines for the operator on standard error, which may hang (a stopped terminal) or be gone (a lost session)."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from typing import TextIO

_QUEUE_LINES = 64


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line, to standard error where no stream is named; may wait, never raises when nobody can be told."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        print(f"splitvla-edge: {text}", file=sys.stderr if stream is None else stream, flush=True)


class Printer:
    """Says lines on a thread of its own, for whoever must neither wait nor fail. What it has no room for is dropped."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._queue: queue.Queue[str | None] = queue.Queue(_QUEUE_LINES)
        self._thread = threading.Thread(target=self._print, name="operator's lines", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(text)

    def close(self, timeout_s: float = 1.0) -> None:
        """Print what is queued, for at most `timeout_s`."""
        with contextlib.suppress(queue.Full):  # the terminal hangs: the thread ends with the process
            self._queue.put_nowait(None)
            self._thread.join(timeout_s)

    def _print(self) -> None:
        while (text := self._queue.get()) is not None:
            say(text, self._stream)
