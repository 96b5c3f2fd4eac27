"""Two servers behind a pool: fakes that answer as a test says, on a clock that stands still."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from splitvla_edge.link.calls import InferCall, Reply, ServerDescription
from splitvla_edge.link.servers import ServerPool
from splitvla_shared.errors import LinkError, Superseded
from splitvla_shared.nouns import Scheme
from tests.fake_server import SPEC

CALL = InferCall(SPEC.fingerprint, 1, 7, "robot", "pick", (), 7)


class FakeServer:
    """Answers at once, or as `outcome` says; a call that was begun waits for `answer`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.description: ServerDescription | LinkError = ServerDescription(SPEC, tuple(Scheme))
        self.says: str | LinkError = "SERVING"
        self.outcome: Reply | LinkError = Reply(7, tokens=(1,), draining=False)
        self.calls: list[InferCall] = []
        self.described = threading.Semaphore(0)
        self.may_describe = threading.Event()
        self.may_describe.set()
        self.answer = threading.Event()
        self.begun: list[FakePending] = []
        self.closed = False
        self.when_begun: Callable[[], object] = lambda: None
        self.when_asked: Callable[[], object] = lambda: None

    def describe(self, timeout_s: float) -> ServerDescription:
        self.described.release()
        assert self.may_describe.wait(5.0)
        if isinstance(self.description, LinkError):
            raise self.description
        return self.description

    def health(self, timeout_s: float) -> str:
        if isinstance(self.says, LinkError):
            raise self.says
        return self.says

    def infer(self, request: InferCall, deadline_s: float) -> Reply:
        self.calls.append(request)
        self.when_asked()
        if isinstance(self.outcome, LinkError):
            raise self.outcome
        return self.outcome

    def begin(self, request: InferCall, deadline_s: float) -> FakePending:
        self.begun.append(FakePending(self, request, deadline_s))
        self.when_begun()
        return self.begun[-1]

    def close(self) -> None:
        self.closed = True


class FakePending:
    def __init__(self, server: FakeServer, request: InferCall, deadline_s: float) -> None:
        self.server, self.request, self.deadline_s = server, request, deadline_s
        self.cancelled = False

    def reply(self) -> Reply:
        assert self.server.answer.wait(5.0)
        if self.cancelled:
            raise Superseded("given up")
        return self.server.infer(self.request, self.deadline_s)

    def cancel(self) -> None:
        self.cancelled = True
        self.server.answer.set()


class Rig:
    def __init__(self, hedge_after_s: float | None = None) -> None:
        self.now = 100.0
        self.a, self.b = FakeServer("a:1"), FakeServer("b:2")
        self.pool = ServerPool([self.a, self.b], SPEC.fingerprint, hedge_after_s=hedge_after_s, clock=lambda: self.now)

    def infer(self, deadline_s: float = 0.3) -> Reply | LinkError:
        try:
            return self.pool.infer(CALL, deadline_s)
        except LinkError as error:
            return error

    def settle(self) -> None:
        """Wait for the probes that are out."""
        self.pool._threads.shutdown(wait=True)
        self.pool._threads = ThreadPoolExecutor(4)

    def counts(self) -> tuple[int, int]:
        return len(self.a.calls), len(self.b.calls)
