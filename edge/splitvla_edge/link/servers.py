"""Several servers behind one link: a draining or failing one is left for the next, a late call may be hedged.

Rules of this file:
 - Calls stay with one server until it drains, fails, sheds load or holds another model; nothing balances load.
 - What a server that is not in use is worth is found out by `describe` and `health` on a thread of its own,
   one probe at a time: a frame of the robot is never the probe.
 - A hedge is the same call to a second server, or, where it is a difference from what the first one holds, the same
   observation as a key frame. The first action wins; the other call is cancelled, which counts as a miss of the server
   that was asked first. At most two calls are in flight.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ParamSpec, Protocol, TypeVar

from splitvla_edge.link.breaker import Breaker
from splitvla_edge.link.calls import InferCall, Reply, ServerDescription
from splitvla_shared.errors import DeadlineMissed, LinkError, Overloaded, SpecMismatch, Superseded, Unreachable

_PROBE_S = 1.0
_OTHERS_S = 0.1  # what a handshake waits for the next server when one has answered that can be used
_SHED_S = 1.0  # a server that shed load is passed over for so long, unless it says for how long itself
P = ParamSpec("P")
R = TypeVar("R")


class Pending(Protocol):
    """A call that was begun."""

    def reply(self) -> Reply:
        """Wait for the answer. Raises the LinkError that `infer` would."""

    def cancel(self) -> None: ...


class ServerLink(Protocol):
    """One server: what GrpcLink is."""

    @property
    def address(self) -> str: ...

    def describe(self, timeout_s: float) -> ServerDescription: ...

    def health(self, timeout_s: float) -> str:
        """Of its inference: "SERVING" or another word. Raises LinkError."""

    def infer(self, request: InferCall, deadline_s: float) -> Reply: ...

    def begin(self, request: InferCall, deadline_s: float) -> Pending: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Server:
    """One server and what is known of it. Mutable; guarded by the pool's lock."""

    link: ServerLink
    breaker: Breaker = field(default_factory=Breaker)
    description: ServerDescription | None = None
    passed_over_until: float = -math.inf


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that was begun, and its end as `_answer` tells it."""

    pending: Pending
    answer: Future[Reply]


class ServerPool:
    """The policy's Link over several servers. Owned by one thread; probes and hedges run on threads of its own.

    Mutable state, under a lock: what is known of each server, and which one is in use.
    """

    def __init__(
        self,
        links: Sequence[ServerLink],
        fingerprint: str,
        *,
        hedge_after_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """links: in order of preference. fingerprint: of the model that a server must hold to be used.

        hedge_after_s: when a call that has no answer is sent to a second server as well; None: never.
        """
        self._servers = [_Server(link) for link in links]
        self._fingerprint, self._hedge_after_s, self._clock = fingerprint, hedge_after_s, clock
        self._current = self._servers[0]
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(2 * len(links), thread_name_prefix="servers")

    @property
    def address(self) -> str:
        """Of the server in use."""
        return self._current.link.address

    def describe(self, timeout_s: float) -> ServerDescription:
        """Ask all servers at once; the description of the first one in order of preference that can be used.

        One that is not there costs little: once a server can be used, the others have a moment left to answer.
        Raises Unreachable when none answers in time. When none holds the model, one of the others is returned, whose
        differences the policy then names.
        """
        asked = {self._submit(self._look_at, server, timeout_s): server for server in self._servers}
        found = self._first_usable(asked)
        errors = [error for future in asked if future.done() and (error := future.result()) is not None]
        answered = [server for future, server in asked.items() if future.done() and future.result() is None]
        with self._lock:
            self._current = self._best(answered) if found is None else found
            description = self._current.description
        if description is None or not answered:
            raise Unreachable("; ".join(str(error) for error in errors) or "no server answers")
        return description

    def infer(self, request: InferCall, deadline_s: float) -> Reply:
        """As GrpcLink.infer, by the server in use, or by the faster of two when the call is hedged."""
        with self._lock:
            self._probe_others()
            if not self._usable(self._current):
                self._current = self._best(self._servers)
            first = self._current
            second = self._spare(first) if self._hedge_after_s is not None else None
        if second is None or self._hedge_after_s is None or self._hedge_after_s >= deadline_s:
            fitting, left_s = self._fitted(first, request, deadline_s)
            return self._answer(first, lambda: first.link.infer(fitting, left_s))
        return self._hedged(first, second, request, deadline_s, self._hedge_after_s)

    def close(self) -> None:
        # Nothing is cancelled: to whoever waits for it, what is left to do says at once that its link is closed.
        self._threads.shutdown(wait=False)
        for server in self._servers:
            server.link.close()

    def _first_usable(self, asked: dict[Future[LinkError | None], _Server]) -> _Server | None:
        """Of the servers that have answered; None once all have, and none will do. asked: in order of preference."""
        waiting, patience_s = set(asked), None
        while waiting:
            done, waiting = wait(waiting, patience_s, FIRST_COMPLETED)
            with self._lock:
                usable = [server for future, server in asked.items() if future.done() and self._usable(server)]
            if usable and not (done and waiting):
                return usable[0]
            patience_s = _OTHERS_S if usable else None
        return None

    def _hedged(self, first: _Server, second: _Server, request: InferCall, deadline_s: float, after_s: float) -> Reply:
        ended: queue.SimpleQueue[Future[Reply]] = queue.SimpleQueue()
        until = self._clock() + deadline_s
        calls = [self._begin(first, request, deadline_s, ended)]
        try:
            try:
                finished = ended.get(timeout=after_s)
            except queue.Empty:
                with suppress(LinkError):  # no time is left for a second one: the first may have its answer by now
                    left_s = min(deadline_s - after_s, until - self._clock())
                    calls.append(self._begin(second, request, left_s, ended))
                finished = ended.get()
            if len(calls) == 2 and not _has_action(finished):
                other = ended.get()  # it may still answer
                # That a key frame is needed is worth more than another server's error: the frame can be sent again.
                finished = finished if other.exception() is not None and finished.exception() is None else other
            if not calls[0].answer.done():
                # Its call is cancelled before it could be missed, so that a server which hangs would be asked for ever.
                # As of misses two in a row count: one slow answer is worth no key frame to another server.
                with self._lock:
                    first.breaker.failed(self._clock())
        finally:
            for call in calls:
                call.pending.cancel()  # does nothing to a call that has ended
        return finished.result()

    def _begin(
        self, server: _Server, request: InferCall, deadline_s: float, ended: queue.SimpleQueue[Future[Reply]]
    ) -> _Call:
        pending = server.link.begin(*self._fitted(server, request, deadline_s))
        answer = self._submit(self._answer, server, pending.reply)
        answer.add_done_callback(ended.put)
        return _Call(pending, answer)

    def _fitted(self, server: _Server, request: InferCall, deadline_s: float) -> tuple[InferCall, float]:
        """The call as that server can take it, and what is left of its time: a key frame takes some to make."""
        started = self._clock()
        fitting = request.fit_for(server.link.address)
        left_s = deadline_s - (self._clock() - started)
        if not left_s > 0:
            raise DeadlineMissed(fitting.miss(deadline_s))
        return fitting, left_s

    def _answer(self, server: _Server, call: Callable[[], Reply]) -> Reply:
        """The reply of a call, and what it tells of its server."""
        try:
            reply = call()
        except LinkError as error:
            with self._lock:
                self._note_failure(server, error)
            raise
        with self._lock:
            server.breaker.succeeded()
            if reply.draining:
                server.breaker.open(self._clock())
        return reply

    def _note_failure(self, server: _Server, error: LinkError) -> None:
        now = self._clock()
        if isinstance(error, Overloaded):
            server.passed_over_until = now + (error.retry_after_s or _SHED_S)
            if self._spare(server) is not None:
                error.retry_after_s = 0.0  # the next frame goes there, and at once
        elif isinstance(error, SpecMismatch):
            server.description = None
        elif not isinstance(error, Superseded):
            server.breaker.failed(now, certain=isinstance(error, Unreachable))

    def _look_at(self, server: _Server, timeout_s: float) -> LinkError | None:
        """Ask a server what it is; an error is returned, because nobody waits for a probe."""
        until = self._clock() + timeout_s
        try:
            description, error = server.link.describe(timeout_s), None
        except LinkError as failure:
            description, error = None, failure
        # A server describes itself while it loads its model, and while a pass hangs; only its health says so.
        serves = error is None and _serves(server.link, until - self._clock())
        with self._lock:
            # Without an answer the old one stands: a call that goes well closes the breaker, and nobody asks again.
            # Another model is found out all the same: every call carries the fingerprint.
            server.description = description or server.description
            well = description is not None and not description.draining and serves and self._holds_model(server)
            if not well:
                server.breaker.open(self._clock())
            server.breaker.probed(self._clock(), well)
        return error

    def _probe_others(self) -> None:
        now = self._clock()
        for server in self._servers:
            if server.breaker.take_probe(now):
                self._submit(self._look_at, server, _PROBE_S)

    def _submit(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        try:
            return self._threads.submit(work, *args, **kwargs)
        except RuntimeError as error:  # the executor's only way to say that it is closed
            addresses = ", ".join(server.link.address for server in self._servers)
            raise Unreachable(f"the links to {addresses} are closed") from error

    def _holds_model(self, server: _Server) -> bool:
        return server.description is not None and server.description.spec.fingerprint == self._fingerprint

    def _usable(self, server: _Server) -> bool:
        shed = self._clock() < server.passed_over_until
        return server.breaker.closed and self._holds_model(server) and not shed

    def _best(self, among: Sequence[_Server]) -> _Server:
        """The first that can be used; else the first that holds the model, the one in use before others; else any."""
        order = sorted(among, key=lambda server: server is not self._current)
        for wanted in (self._usable, self._holds_model, lambda server: server.description is not None):
            if (found := next(filter(wanted, among if wanted == self._usable else order), None)) is not None:
                return found
        return self._current

    def _spare(self, first: _Server) -> _Server | None:
        return next((server for server in self._servers if server is not first and self._usable(server)), None)


def _serves(link: ServerLink, timeout_s: float) -> bool:
    """Does nothing speak against it? Who has just described itself and is slow to say more is on a long path."""
    try:
        return timeout_s <= 0 or link.health(timeout_s) == "SERVING"
    except LinkError:
        return True


def _has_action(call: Future[Reply]) -> bool:
    return call.exception() is None and not call.result().key_frame_needed
