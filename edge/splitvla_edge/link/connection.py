"""The line that calls go over, and a fresh one beside it as soon as a call ends without a word of the server.

A connection can be dead without anyone saying so: the path was gone and TCP waits longer before each retransmission, a
middlebox forgot it, a flipped bit broke its framing. gRPC finds out by pings, seconds later, while the robot stands.

Rules of this file:
 - The old connection serves until the server has answered on the fresh one: that proves the path, in both directions.
 - A fresh one that is not there soon is replaced: its own first packets may have been lost.
 - While calls are answered there is no second connection. One that was adopted and helped nothing delays the next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import grpc

from splitvla_shared.transport import is_refusal

_GRACE_S = 0.05  # what a call waits for a fresh connection: on most networks of robots an answer takes less
_ANSWERS_S = 0.25
_PATIENCE = (1, 8)  # unheard calls in a row before a fresh connection: at first, and at most


class Line(Protocol):
    """A gRPC channel with its stubs, made at once: a stub made on a channel that is closed already ends the process."""

    def knock(self) -> Any:
        """Begin a small call; gives grpc's future, which fails at once where the connection is refused."""

    def close(self) -> None: ...


L = TypeVar("L", bound=Line)


class _Fresh(Generic[L]):
    """A line on its way to be connected. Mutable state: set by gRPC's thread."""

    def __init__(self, line: L, now: float) -> None:
        self.line, self.began = line, now
        self.failed = False
        self._ended = threading.Event()
        self._call = line.knock()
        self._call.add_done_callback(self._see)

    def answered_within(self, timeout_s: float) -> bool:
        return self._ended.wait(timeout_s) and not self.failed

    def give_up(self) -> None:
        self._call.cancel()
        self.line.close()

    def _see(self, call: Any) -> None:
        self.failed = call.cancelled() or (call.exception() is not None and unanswered(call.exception()))
        self._ended.set()


class Connection(Generic[L]):
    """Thread-safe. Mutable state, under a lock: the line in use, the fresh one, and the calls that went unheard.

    open_line: gives a line that shares no connection with another (`grpc.use_local_subchannel_pool`).
    """

    def __init__(self, open_line: Callable[[], L], clock: Callable[[], float] = time.monotonic) -> None:
        self._open, self._clock = open_line, clock
        self._line = open_line()
        self._fresh: _Fresh[L] | None = None
        self._unheard, self._patience = 0, _PATIENCE[0]
        self._closed = False
        self._lock = threading.Lock()

    def line(self, deadline_s: float) -> L:
        """For one call that may take so long. Waits a moment of that for a fresh connection, where one is to come."""
        fresh = self._fresh
        if fresh is not None and not fresh.failed and fresh.answered_within(min(_GRACE_S, deadline_s / 2)):
            self._adopt(fresh)
        return self._line

    def heard(self) -> None:
        """A call ended with a word of the server, whichever."""
        with self._lock:
            self._unheard, self._patience = 0, _PATIENCE[0]
            self._drop_fresh()

    def unheard(self) -> None:
        """A call ended, and the server did not say a word."""
        with self._lock:
            self._unheard += 1
            if self._closed or self._unheard < self._patience:
                return
            fresh = self._fresh
            if fresh is None or fresh.failed or self._clock() - fresh.began >= _ANSWERS_S:
                self._drop_fresh()
                self._fresh = _Fresh(self._open(), self._clock())

    def close(self) -> None:
        """May be called twice."""
        with self._lock:
            self._closed = True
            self._drop_fresh()
            self._line.close()

    def _adopt(self, fresh: _Fresh[L]) -> None:
        with self._lock:
            if self._fresh is not fresh:  # another thread was faster, or the link was closed
                return
            old, self._line, self._fresh = self._line, fresh.line, None
            self._unheard, self._patience = 0, min(2 * self._patience, _PATIENCE[1])
        old.close()

    def _drop_fresh(self) -> None:
        if self._fresh is not None:
            self._fresh.give_up()
            self._fresh = None


def unanswered(error: Any) -> bool:
    """Whether a grpc.RpcError came of silence, no answer in time or no connection, and is no word of the server."""
    silent = error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    return silent and not is_refusal(error.trailing_metadata())
