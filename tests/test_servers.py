"""Several servers behind one link: drain, failure, probes and hedges, with fakes for the servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest

from splitvla_edge.link.breaker import Breaker
from splitvla_edge.link.calls import InferCall, Reply, ServerDescription
from splitvla_edge.link.grpc_link import GrpcLink, check_addresses
from splitvla_edge.link.servers import ServerPool
from splitvla_shared.errors import (
    ConfigError,
    DeadlineMissed,
    LinkError,
    Overloaded,
    ServerFault,
    Superseded,
    Unreachable,
)
from splitvla_shared.nouns import Scheme
from splitvla_shared.wire import inference_pb2 as pb
from tests.fake_server import SPEC, FakeServicer, answer, serving

CALL = InferCall(SPEC.fingerprint, 1, 7, "robot", "pick", (), 7)


class FakeServer:
    """Answers at once, or as `outcome` says; a call that was begun waits for `answer`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.description: ServerDescription | LinkError = ServerDescription(SPEC, tuple(Scheme))
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

    def infer(self) -> Reply | LinkError:
        try:
            return self.pool.infer(CALL, 0.3)
        except LinkError as error:
            return error

    def settle(self) -> None:
        """Wait for the probes that are out."""
        self.pool._threads.shutdown(wait=True)
        self.pool._threads = ThreadPoolExecutor(4)

    def counts(self) -> tuple[int, int]:
        return len(self.a.calls), len(self.b.calls)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    made.pool.describe(1.0)
    yield made
    made.pool.close()


@pytest.fixture
def hedging() -> Iterator[Rig]:
    made = Rig(hedge_after_s=0.01)
    made.pool.describe(1.0)
    yield made
    made.pool.close()


def test_calls_go_to_the_first_server_as_long_as_it_is_well(rig: Rig) -> None:
    for _ in range(3):
        rig.infer()
    assert rig.counts() == (3, 0)


def test_a_server_that_drains_hands_over_without_losing_a_call(rig: Rig) -> None:
    rig.a.outcome = Reply(7, tokens=(1,), draining=True)
    assert isinstance(rig.infer(), Reply)
    assert isinstance(rig.infer(), Reply)
    assert (rig.counts(), rig.pool.address) == ((1, 1), "b:2")


def test_a_server_that_drains_alone_is_used_to_the_end(rig: Rig) -> None:
    rig.b.description = Unreachable("off")
    rig.pool.describe(1.0)
    rig.a.outcome = Reply(7, tokens=(1,), draining=True)
    for _ in range(3):
        assert isinstance(rig.infer(), Reply)
    assert rig.counts() == (3, 0)


def test_a_server_that_refuses_is_left_at_once_and_one_that_misses_after_the_second_time(rig: Rig) -> None:
    rig.a.outcome = Unreachable("refused")
    rig.infer()
    rig.infer()
    assert rig.counts() == (1, 1)
    rig.b.outcome = DeadlineMissed("late")
    rig.a.outcome = Reply(7, tokens=(1,))
    rig.infer()
    rig.infer()
    assert rig.counts() == (1, 3)


def test_a_server_that_shed_load_is_passed_over_for_a_second(rig: Rig) -> None:
    rig.a.outcome = Overloaded("queue full")
    rig.infer()
    rig.infer()
    assert rig.counts() == (1, 1)


def test_a_server_that_says_for_how_long_is_passed_over_for_so_long_and_the_other_one_is_asked_at_once(
    rig: Rig,
) -> None:
    shed = rig.a.outcome = Overloaded("queue full")
    shed.retry_after_s = 0.2
    rig.infer()
    assert shed.retry_after_s == 0.0, "nobody need wait: there is another server"
    rig.a.outcome = Reply(7, tokens=(1,))
    rig.now += 0.1
    rig.infer()
    rig.b.outcome = Unreachable("gone")
    rig.now += 0.2
    rig.infer()
    rig.infer()
    assert rig.counts() == (2, 2)


def test_a_server_with_another_model_is_never_used(rig: Rig) -> None:
    rig.b.description = ServerDescription(replace(SPEC, fingerprint="0" * 64), tuple(Scheme))
    rig.pool.describe(1.0)
    rig.a.outcome = Unreachable("refused")
    for _ in range(3):
        rig.infer()
    assert rig.counts() == (3, 0)


def test_a_server_that_failed_is_probed_once_and_never_with_a_frame(rig: Rig) -> None:
    rig.a.outcome = Unreachable("refused")
    rig.infer()
    assert rig.a.described.acquire(timeout=5.0), "of the handshake"
    rig.infer()
    assert not rig.a.described.acquire(blocking=False), "not before the pause is over"
    rig.now += 1.1
    rig.infer()
    assert rig.a.described.acquire(timeout=5.0)
    assert rig.counts() == (1, 2)


def test_a_server_whose_probe_failed_in_an_outage_takes_over_when_it_is_needed(rig: Rig) -> None:
    well, gone = (rig.a.outcome, rig.a.description), Unreachable("no network")

    def die(server: FakeServer) -> None:
        server.outcome = server.description = gone

    def come_back(server: FakeServer) -> None:
        server.outcome, server.description = well

    die(rig.a)
    die(rig.b)
    for wait_s in (0.0, 0.0, 1.1, 2.1):  # both refuse, and then no probe is answered
        rig.now += wait_s
        rig.infer()
        rig.settle()
    come_back(rig.b)
    assert isinstance(rig.infer(), Reply), "a frame of the robot is answered before the next probe is due"
    come_back(rig.a)
    rig.now += 8.1
    rig.infer()
    rig.settle()
    die(rig.b)
    rig.infer()
    assert isinstance(rig.infer(), Reply)
    come_back(rig.b)
    rig.now += 8.1
    rig.infer()
    rig.settle()
    die(rig.a)
    rig.infer()
    assert isinstance(rig.infer(), Reply)
    assert rig.pool.address == "b:2"


def test_the_handshake_describes_the_first_server_that_can_be_used(rig: Rig) -> None:
    rig.a.description = ServerDescription(SPEC, tuple(Scheme), draining=True)
    described = rig.pool.describe(1.0)
    assert not described.draining
    assert rig.pool.address == "b:2"


def test_the_handshake_does_not_wait_for_a_server_that_says_nothing(rig: Rig) -> None:
    for silent, other in ((rig.a, rig.b), (rig.b, rig.a)):
        silent.may_describe.clear()
        rig.pool.describe(1.0)
        assert rig.pool.address == other.address
        silent.may_describe.set()


def test_the_handshake_fails_only_when_no_server_answers(rig: Rig) -> None:
    rig.a.description = rig.b.description = Unreachable("nobody at home")
    with pytest.raises(Unreachable, match="nobody at home"):
        rig.pool.describe(1.0)
    assert rig.pool.address == "a:1"


def test_the_handshake_believes_only_the_servers_that_answer_now(rig: Rig) -> None:
    rig.a.description = Unreachable("nobody at home")
    rig.b.description = other = ServerDescription(replace(SPEC, fingerprint="0" * 64), tuple(Scheme))
    assert rig.pool.describe(1.0) is other, "whose differences are to be named"


def test_a_late_call_is_hedged_and_the_first_valid_answer_wins(hedging: Rig) -> None:
    hedging.b.answer.set()
    reply = hedging.infer()
    assert isinstance(reply, Reply)
    first, second = hedging.a.begun[0], hedging.b.begun[0]
    assert first.request is second.request, "the same call, with the same sequence"
    assert first.cancelled
    assert second.deadline_s == pytest.approx(0.29)
    assert hedging.counts() == (0, 1)


def test_a_call_that_is_answered_in_time_is_not_hedged(hedging: Rig) -> None:
    hedging.a.answer.set()
    assert isinstance(hedging.infer(), Reply)
    assert hedging.b.begun == []


def test_a_server_that_hangs_is_left_after_two_calls_whose_hedge_won(hedging: Rig) -> None:
    for _ in range(3):
        hedging.a.answer.clear()
        hedging.b.answer.set()
        assert isinstance(hedging.infer(), Reply)
    assert (len(hedging.a.begun), len(hedging.b.begun), hedging.counts()) == (2, 2, (0, 3)), "the third goes to b alone"
    assert hedging.pool.address == "b:2"


def test_one_late_call_between_answers_of_its_own_does_not_put_a_server_out(hedging: Rig) -> None:
    for slow, fast in 2 * [(hedging.a, hedging.b), (hedging.b, hedging.a)]:
        slow.answer.clear()
        fast.answer.set()
        assert isinstance(hedging.infer(), Reply)
    assert (len(hedging.a.begun), hedging.pool.address) == (4, "a:1")


def test_a_hedge_that_fails_leaves_the_other_call_its_chance(hedging: Rig) -> None:
    hedging.b.answer.set()
    hedging.b.outcome = ServerFault("broken")
    threading.Timer(0.05, hedging.a.answer.set).start()
    assert isinstance(hedging.infer(), Reply)
    assert hedging.counts() == (1, 1)


DIFFERENCE = replace(CALL, key_frame=lambda: replace(CALL, sequence=8), held_by="a:1")
KEY_FRAME_NEEDED = Reply(7, key_frame_needed=True, server="a:1")


def test_a_difference_goes_only_to_the_server_that_holds_its_reference(rig: Rig) -> None:
    rig.pool.infer(DIFFERENCE, 0.3)
    rig.a.outcome = Unreachable("refused")
    rig.infer()
    rig.pool.infer(DIFFERENCE, 0.3)
    assert [call.sequence for call in rig.a.calls] == [7, 7]
    assert [call.sequence for call in rig.b.calls] == [8]


def test_the_hedge_of_a_difference_is_a_key_frame(hedging: Rig) -> None:
    hedging.b.answer.set()
    hedging.pool.infer(DIFFERENCE, 0.3)
    assert [server.begun[0].request.sequence for server in (hedging.a, hedging.b)] == [7, 8]


def test_a_wish_for_a_key_frame_is_no_action_and_leaves_the_hedge_its_chance(hedging: Rig) -> None:
    hedging.a.outcome = KEY_FRAME_NEEDED
    hedging.b.when_begun, hedging.a.when_asked = hedging.a.answer.set, hedging.b.answer.set
    assert hedging.pool.infer(DIFFERENCE, 1.0) is hedging.b.outcome


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_wish_for_a_key_frame_is_worth_more_than_an_error(hedging: Rig, first: str) -> None:
    hedging.a.outcome, hedging.b.outcome = KEY_FRAME_NEEDED, ServerFault("broken")
    early, late = (hedging.a, hedging.b) if first == "a" else (hedging.b, hedging.a)
    hedging.b.when_begun, early.when_asked = early.answer.set, late.answer.set
    assert hedging.pool.infer(DIFFERENCE, 1.0) is KEY_FRAME_NEEDED


def test_closing_the_pool_closes_every_link(rig: Rig) -> None:
    rig.pool.close()
    assert (rig.a.closed, rig.b.closed) == (True, True)


def test_a_breaker_sends_one_probe_at_a_time_and_waits_twice_as_long_after_a_failed_one() -> None:
    breaker = Breaker()
    breaker.failed(0.0)
    assert breaker.closed
    breaker.failed(0.0)
    assert not breaker.closed
    assert not breaker.take_probe(0.9)
    assert breaker.take_probe(1.0)
    assert not breaker.take_probe(1.0), "one is out"
    breaker.probed(1.0, well=False)
    assert not breaker.take_probe(2.9)
    assert breaker.take_probe(3.0)
    breaker.probed(3.0, well=True)
    assert breaker.closed


def test_addresses_are_checked_one_by_one() -> None:
    assert check_addresses("a:1, b:2") == ("a:1", "b:2")
    for text in ("a:1,", "a:1,a:1", "a:1,b"):
        with pytest.raises(ConfigError):
            check_addresses(text)


def test_over_real_sockets_a_hedge_cancels_the_call_that_hangs() -> None:
    let_go, cancelled = threading.Event(), threading.Event()

    def hang(request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:
        context.add_callback(cancelled.set)
        let_go.wait(5.0)
        return answer(request)

    with serving(FakeServicer(hang)) as slow, serving(FakeServicer()) as fast:
        pool = ServerPool([GrpcLink(slow), GrpcLink(fast)], SPEC.fingerprint, hedge_after_s=0.02)
        pool.describe(5.0)
        assert pool.infer(CALL, 5.0).sequence == 7
        assert cancelled.wait(5.0), "the server is told, and need not answer"
        let_go.set()
        pool.close()
