"""A late call is sent to a second server as well: which answer counts, and what the hedge says of the first server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest

from splitvla_edge.link.calls import InferCall, Reply
from splitvla_edge.link.grpc_link import GrpcLink
from splitvla_edge.link.servers import ServerPool
from splitvla_shared.errors import CodecError, ServerFault, Unreachable
from splitvla_shared.wire import inference_pb2 as pb
from tests.fake_server import SPEC, FakeServicer, answer, serving
from tests.server_pool_rig import CALL, Rig

pytestmark = pytest.mark.usefixtures("patient_handshake")


@pytest.fixture
def hedging() -> Iterator[Rig]:
    made = Rig(hedge_after_s=0.01)
    made.pool.describe(1.0)
    yield made
    made.pool.close()


def test_a_late_call_is_hedged_and_the_first_valid_answer_wins(hedging: Rig) -> None:
    hedging.b.answer.set()
    reply = hedging.infer()
    assert isinstance(reply, Reply)
    first, second = hedging.a.begun[0], hedging.b.begun[0]
    assert first.request is second.request, "the same call, with the same sequence"
    assert first.cancelled
    assert second.deadline_s == pytest.approx(0.29)
    assert hedging.counts() == (0, 1)


def test_a_call_that_is_answered_in_time_is_not_hedged() -> None:
    rig = Rig(hedge_after_s=60.0)
    rig.pool.describe(1.0)
    rig.a.answer.set()
    assert isinstance(rig.infer(deadline_s=100.0), Reply)
    assert (len(rig.a.begun), rig.b.begun) == (1, [])
    rig.pool.close()


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


def test_a_pool_that_is_closed_in_the_middle_of_a_hedge_ends_the_call_as_the_link_does(hedging: Rig) -> None:
    hedging.a.outcome = Unreachable("closed")
    hedging.a.answer.set()
    gate = threading.Event()
    for _ in range(4):  # all threads of the pool, so that nobody waits for the answer yet
        hedging.pool._threads.submit(gate.wait, 5.0)

    def close() -> None:
        hedging.pool.close()
        gate.set()

    hedging.b.when_begun = close
    assert isinstance(hedging.infer(), Unreachable)


def test_a_hedge_that_fails_leaves_the_other_call_its_chance(hedging: Rig) -> None:
    hedging.b.answer.set()
    hedging.b.outcome = ServerFault("broken")
    hedging.b.when_asked = hedging.a.answer.set
    assert isinstance(hedging.infer(), Reply)
    assert hedging.counts() == (1, 1)


DIFFERENCE = replace(CALL, key_frame=lambda: replace(CALL, sequence=8), held_by="a:1")
KEY_FRAME_NEEDED = Reply(7, key_frame_needed=True, server="a:1")


def test_the_hedge_of_a_difference_is_a_key_frame(hedging: Rig) -> None:
    hedging.b.answer.set()
    hedging.pool.infer(DIFFERENCE, 0.3)
    assert [server.begun[0].request.sequence for server in (hedging.a, hedging.b)] == [7, 8]


def test_the_time_that_the_key_frame_takes_to_make_is_the_call_s(hedging: Rig) -> None:
    took_s = 0.1

    def slow() -> InferCall:
        hedging.now += took_s
        if took_s > 0.3:
            hedging.a.answer.set()
        return CALL

    hedging.b.answer.set()
    assert isinstance(hedging.pool.infer(replace(DIFFERENCE, key_frame=slow), 0.3), Reply)
    assert hedging.b.begun[0].deadline_s == pytest.approx(0.3 - 0.01 - 0.1)
    took_s = 0.5
    hedging.a.answer.clear()
    assert isinstance(hedging.pool.infer(replace(DIFFERENCE, key_frame=slow), 0.3), Reply), (
        "meanwhile the first has one"
    )
    assert len(hedging.b.begun) == 1


def test_a_hedge_that_can_not_be_made_gives_the_first_call_up(hedging: Rig) -> None:
    def fails() -> InferCall:
        raise CodecError("not even as int8")

    with pytest.raises(CodecError):
        hedging.pool.infer(replace(DIFFERENCE, key_frame=fails), 0.3)
    assert hedging.a.begun[0].cancelled


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
