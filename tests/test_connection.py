"""The connection: a fresh one is opened beside a silent one, and used once the server has answered on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from benchmarks.link import LinkProxy
from splitvla_edge.link import connection
from splitvla_edge.link.calls import InferCall
from splitvla_edge.link.connection import Connection
from splitvla_edge.link.grpc_link import GrpcLink
from splitvla_shared.errors import DeadlineMissed, Unreachable
from tests.fake_server import SPEC, FakeServicer, serving

CALL = InferCall(SPEC.fingerprint, 1, 7, "robot", "pick", (), 7)


class Refused(grpc.RpcError):  # type: ignore[misc]  # grpc has no types
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()


class FakeLine:
    """A line and the knock on it, which is answered when it is told to, or at once."""

    def __init__(self, path: bool) -> None:
        self.path, self.closed = path, False
        self.error: grpc.RpcError | None = None
        self._done: Callable[[Any], None] | None = None

    def knock(self) -> FakeLine:
        return self

    def add_done_callback(self, done: Callable[[Any], None]) -> None:
        self._done = done
        if self.path:
            done(self)

    def end(self, error: grpc.RpcError | None = None) -> None:
        assert self._done is not None
        self.error = error
        self._done(self)

    def exception(self) -> grpc.RpcError | None:
        return self.error

    def cancelled(self) -> bool:
        return False

    def cancel(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class Rig:
    def __init__(self, *, path: bool = True) -> None:
        self.now, self.path = 50.0, path
        self.opened: list[FakeLine] = []
        self.connection = Connection(self._open, clock=lambda: self.now)

    def _open(self) -> FakeLine:
        self.opened.append(FakeLine(self.path))
        return self.opened[-1]

    def used(self) -> int:
        """The number of the channel that a call would take now."""
        return self.opened.index(self.connection.line(0.3))


def test_while_calls_are_answered_there_is_one_connection() -> None:
    rig = Rig()
    for _ in range(5):
        rig.connection.heard()
    assert (len(rig.opened), rig.used()) == (1, 0)


def test_after_a_call_that_nobody_answered_a_fresh_connection_takes_over_and_the_old_one_is_closed() -> None:
    rig = Rig()
    rig.connection.unheard()
    assert rig.used() == 1
    assert [channel.closed for channel in rig.opened] == [True, False]


def test_the_old_connection_stays_in_use_until_the_server_has_answered_on_the_fresh_one() -> None:
    rig = Rig(path=False)
    rig.connection.unheard()
    assert rig.used() == 0
    rig.opened[1].end()
    assert rig.used() == 1


def test_an_answer_after_all_ends_the_fresh_connection() -> None:
    rig = Rig(path=False)
    rig.connection.unheard()
    rig.connection.heard()
    assert rig.used() == 0
    assert [channel.closed for channel in rig.opened] == [False, True]


def test_a_fresh_connection_that_does_not_come_is_replaced_once_it_had_its_time() -> None:
    rig = Rig(path=False)
    rig.connection.unheard()
    rig.now += 0.1
    rig.connection.unheard()
    assert len(rig.opened) == 2, "it has had 100 ms"
    rig.now += 0.2
    rig.connection.unheard()
    assert [channel.closed for channel in rig.opened] == [False, True, False]


def test_a_fresh_connection_that_is_refused_is_replaced_by_the_next_call_and_never_waited_for() -> None:
    rig = Rig(path=False)
    rig.connection.unheard()
    rig.opened[1].end(Refused())
    assert rig.used() == 0
    rig.connection.unheard()
    assert [channel.closed for channel in rig.opened] == [False, True, False]


def test_a_connection_that_helped_nothing_delays_the_next_one() -> None:
    rig = Rig()
    needed = []
    for number in range(1, 6):
        calls = 0
        while rig.used() < number:
            rig.connection.unheard()
            calls += 1
        needed.append(calls)
    assert needed == [1, 2, 4, 8, 8]
    rig.connection.heard()
    rig.connection.unheard()
    assert rig.used() == 6, "an answer starts this anew"


def test_a_closed_connection_opens_no_other() -> None:
    rig = Rig(path=False)
    rig.connection.unheard()
    rig.connection.close()
    rig.connection.close()
    rig.connection.unheard()
    assert [channel.closed for channel in rig.opened] == [True, True]


def test_a_link_that_was_closed_before_its_first_call_says_so() -> None:
    link = GrpcLink("127.0.0.1:9")
    link.close()
    for call in (
        lambda: link.infer(CALL, 0.2),
        lambda: link.begin(CALL, 0.2),
        lambda: link.describe(0.2),
        lambda: link.health(0.2),
    ):
        with pytest.raises(Unreachable, match="is closed"):
            call()


def test_over_real_sockets_a_half_open_connection_costs_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_GRACE_S", 20.0)  # a busy machine's
    with serving(FakeServicer()) as server:
        host, _, port = server.rpartition(":")
        with LinkProxy((host, int(port))) as proxy, GrpcLink(proxy.address) as link:
            link.describe(5.0)
            proxy.half_open()
            with pytest.raises((DeadlineMissed, Unreachable)):
                link.infer(CALL, 0.3)
            assert link.infer(CALL, 20.0).sequence == 7
