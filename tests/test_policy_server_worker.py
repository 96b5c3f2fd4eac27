"""The policy server's thread: one request after another, errors for what is late or lost, and the way back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from splitvla_edge.policy_server.desk import Arrival, ClientGone, Desk
from splitvla_edge.policy_server.ladder import PayloadLadder
from splitvla_edge.policy_server.request import ActionRequest
from splitvla_edge.policy_server.worker import PolicyWorker
from splitvla_shared.errors import (
    ConfigError,
    DeadlineMissed,
    ObservationError,
    Overloaded,
    ServerFault,
    SpecMismatch,
    SplitVLAError,
    Unreachable,
)
from splitvla_shared.nouns import ActionChunk, Observation, StageTimes
from splitvla_shared.rungs import Rung
from tests.edge_fakes import Clock
from tests.policy_worker_rig import CHUNK, REQUEST, RUNGS, FakePolicy, Rig


def test_a_request_is_one_observation_with_what_is_left_of_its_deadline() -> None:
    rig = Rig().agreed()
    job = rig.job(deadline_s=1.0)
    rig.clock.now += 0.25
    rig.worker.step()
    assert job.answer.result(timeout=0) is CHUNK
    ((observation, deadline_s, rung),) = rig.policy.asked
    assert (observation.instruction, observation.captured_at, deadline_s, rung) == ("lift the pot", 100.0, 0.75, "bf16")


def test_what_waited_past_its_deadline_is_not_computed() -> None:
    rig = Rig().agreed()
    job = rig.job(deadline_s=0.5)
    rig.clock.now += 0.6
    rig.worker.step()
    assert isinstance(rig.failure(job), DeadlineMissed)
    assert "waited 600 ms" in str(rig.failure(job))
    assert not rig.policy.asked


def test_what_its_client_has_given_up_is_not_computed() -> None:
    rig = Rig().agreed()
    job = rig.job()
    assert job.answer.cancel()
    rig.worker.step()
    assert not rig.policy.asked


def test_an_error_is_the_answer_and_the_next_request_is_computed() -> None:
    rig = Rig().agreed()
    rig.policy.acts = [Unreachable("gone")]
    first, second = rig.job(), rig.job()
    rig.worker.step()
    rig.worker.step()
    assert isinstance(rig.failure(first), Unreachable)
    assert second.answer.result(timeout=0) is CHUNK


def test_clipped_tokens_are_an_error_that_names_them_and_the_option() -> None:
    clipped = ActionChunk(0, np.ones((1, 7)), "cloud", tokens=(1, 2, 77, 4, 5, 6, 7), clipped=(2,))
    rig = Rig().agreed()
    rig.policy.acts = [clipped]
    job = rig.job()
    rig.worker.step()
    assert isinstance(rig.failure(job), ServerFault)
    assert "77 in place 2" in str(rig.failure(job))
    assert "--accept-clipped" in str(rig.failure(job))
    willing = Rig(accept_clipped=True).agreed()
    willing.policy.acts = [clipped]
    job = willing.job()
    willing.worker.step()
    assert job.answer.result(timeout=0) is clipped


def test_too_many_that_wait_are_refused_at_once() -> None:
    rig = Rig().agreed()
    for _ in range(8):
        rig.job()
    with pytest.raises(Overloaded, match="8 requests wait"):
        rig.job()


def test_a_server_that_asks_to_be_left_alone_is() -> None:
    shed = Overloaded("queue full")
    shed.retry_after_s = 0.4
    rig = Rig().agreed()
    rig.policy.acts = [shed]
    for after_s, kind in ((0.0, Overloaded), (0.3, Overloaded), (0.2, type(None))):
        rig.clock.now += after_s
        job = rig.job()
        rig.worker.step()
        assert isinstance(rig.failure(job), kind)
    assert len(rig.policy.asked) == 2


def test_without_a_server_requests_fail_with_the_reason_until_one_is_there() -> None:
    rig = Rig()
    rig.policy.handshakes = [Unreachable("no server at h:1")] * 2
    first, second = rig.job(), rig.job()
    rig.worker.step()
    assert isinstance(rig.failure(first), Unreachable)
    assert isinstance(rig.failure(second), Unreachable)
    third = rig.job()
    rig.worker.step()
    assert isinstance(rig.failure(third), Unreachable)
    fourth = rig.job()
    rig.worker.step()
    assert fourth.answer.result(timeout=0) is CHUNK
    lines = rig.told.getvalue().splitlines()
    assert lines[0].startswith("splitvla-edge: no action for anybody: no server at h:1; start `splitvla-cloud serve`")
    assert lines[1:] == ["splitvla-edge: answers come again, after 1 more errors"]


def test_another_model_is_said_field_by_field_until_the_old_one_is_back() -> None:
    rig = Rig().agreed()
    rig.policy.acts = [SpecMismatch("fingerprint")]
    rig.policy.handshakes = [SpecMismatch("embed_dim: 4096 here, 896 there")]
    for reason in ("fingerprint", "embed_dim: 4096 here, 896 there"):
        job = rig.job()
        rig.worker.step()
        assert isinstance(rig.failure(job), SpecMismatch)
        assert reason in str(rig.failure(job))
    job = rig.job()
    rig.worker.step()
    assert job.answer.result(timeout=0) is CHUNK


@pytest.mark.parametrize("error", [SpecMismatch("embed_dim"), ConfigError("scheme")])
def test_another_model_at_the_first_handshake_ends_the_thread_and_says_why(error: SplitVLAError) -> None:
    rig = Rig()
    rig.policy.handshakes = [error]
    waiting = rig.job()
    rig.worker.start()
    assert rig.worker.ended.exception(timeout=5) is error
    assert waiting.answer.exception(timeout=5) is error
    with pytest.raises(Unreachable, match="stopping"):
        rig.job()
    rig.worker.close()


def test_closing_answers_what_waits_and_ends_well() -> None:
    rig = Rig()
    rig.worker.start()
    assert rig.job().answer.result(timeout=5) is CHUNK
    rig.worker.close()
    assert rig.worker.ended.result(timeout=5) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_slip_of_ours_is_an_error_to_the_client_and_ends_the_thread() -> None:
    rig = Rig()
    rig.policy.acts = [ZeroDivisionError("ours")]
    rig.worker.start()
    job = rig.job()
    assert isinstance(job.answer.exception(timeout=5), ServerFault)
    assert isinstance(rig.worker.ended.exception(timeout=5), ServerFault)
    rig.worker.close()


def test_a_request_that_memory_does_not_suffice_for_is_an_error_and_the_next_is_computed() -> None:
    rig = Rig()
    rig.policy.acts = [MemoryError()]
    rig.worker.start()
    job = rig.job()
    assert isinstance(job.answer.exception(timeout=5), ObservationError)
    assert "(2, 2, 3)" in str(job.answer.exception(timeout=5))
    assert rig.job().answer.result(timeout=5) is CHUNK
    rig.worker.close()
    assert rig.worker.ended.result(timeout=5) is None


class HangingPolicy(FakePolicy):
    """Its server does not answer; `close` ends the call, as a closed link does."""

    def __init__(self, clock: Clock, last_words: Exception) -> None:
        super().__init__(clock)
        self.asked_now, self.closed, self.last_words = threading.Event(), threading.Event(), last_words

    def act(self, observation: Observation, *, deadline_s: float, rung: Rung) -> ActionChunk:
        self.asked_now.set()
        assert self.closed.wait(5)
        raise self.last_words

    def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("last_words", [Unreachable("the link is closed"), RuntimeError("threads are shut down")])
def test_in_a_hurry_the_call_under_way_is_ended_and_nothing_else_is_computed(last_words: Exception) -> None:
    rig = Rig()
    policy = HangingPolicy(rig.clock, last_words)
    rig.worker = PolicyWorker(policy, rig.complaints, clock=rig.clock)
    rig.worker.start()
    first, second = rig.job(), rig.job()
    assert policy.asked_now.wait(5)
    rig.worker.hurry()
    assert isinstance(first.answer.exception(timeout=5), Unreachable)
    assert isinstance(second.answer.exception(timeout=5), Unreachable)
    assert rig.worker.ended.result(timeout=5) is None
    rig.worker.close()
    assert "no server" not in rig.told.getvalue()


# --- which payload ----------------------------------------------------------------------------------------------------


def _timed(wire_bytes: int, total_ms: float) -> ActionChunk:
    stages = StageTimes(encode_ms=40.0, network_ms=total_ms - 90.0, prefill_ms=50.0, total_ms=total_ms)
    return ActionChunk(0, np.ones((1, 7)), "cloud", stages=stages, wire_bytes=wire_bytes)


def test_late_answers_of_a_slow_link_lead_to_smaller_payloads() -> None:
    ladder = PayloadLadder(RUNGS)
    assert ladder.choose() == 0
    now = 0.0
    for _ in range(12):
        ladder.met(now + 0.95, now, _timed(2000, 950.0), ladder.choose(), 1.0)
        now += 1.0
    assert ladder.choose() > 0


def test_a_slow_server_costs_no_quality() -> None:
    ladder = PayloadLadder(RUNGS)
    slow = ActionChunk(
        0, np.ones((1, 7)), "cloud", stages=StageTimes(prefill_ms=940.0, network_ms=10.0), wire_bytes=2000
    )
    for second in range(12):
        ladder.met(second + 0.95, second, slow, ladder.choose(), 1.0)
    assert ladder.choose() == 0


def test_after_a_miss_the_smallest_is_sent_and_after_two_the_choice_is_smaller() -> None:
    ladder = PayloadLadder(RUNGS)
    now = 0.0
    for _ in range(2):
        ladder.failed(now + 0.5, DeadlineMissed("late"), ladder.choose(), 0.5)
        assert ladder.choose() == 2
        ladder.met(now + 0.9, now + 0.5, _timed(500, 400.0), 2, 0.5)
        now += 1.5
    assert ladder.choose() > 0


def test_a_server_that_is_away_says_nothing_of_payloads() -> None:
    ladder = PayloadLadder(RUNGS)
    ladder.failed(0.0, Unreachable("gone"), 0, 1.0)
    assert ladder.choose() == 0


# --- from bytes to an action ------------------------------------------------------------------------------------------


class DeskRig(Rig):
    """A desk in front of a worker whose thread is not running: answers come when the test says so."""

    def __init__(self, deadline_s: float = 1.0) -> None:
        super().__init__()
        self.agreed()
        self.desk = Desk(self.worker, self.complaints, served_key="arm", deadline_s=deadline_s, clock=self.clock)

    async def act(self, arrival: Arrival, gone: Callable[[], Awaitable[None]], request: Any = REQUEST) -> ActionChunk:
        async def read() -> ActionRequest:
            found: ActionRequest = request
            return found

        return await self.desk.act(arrival, read, gone)


async def _never() -> None:
    await asyncio.Event().wait()


async def _at_once() -> None:
    return


async def _until_asked(rig: DeskRig) -> None:
    while not rig.worker._queue.qsize():
        await asyncio.sleep(0)


@pytest.fixture
def desk() -> DeskRig:
    return DeskRig()


def test_an_action_that_comes_after_the_deadline_is_an_error(desk: DeskRig) -> None:
    async def scenario() -> None:
        acting = asyncio.ensure_future(desk.act(desk.desk.arrive("POST /act"), _never))
        await _until_asked(desk)
        desk.policy.cost_s = 1.5
        desk.worker.step()
        with pytest.raises(DeadlineMissed, match="deadline of 1000 ms"):
            await acting

    asyncio.run(scenario())
    assert (desk.desk.answered, desk.desk.failed) == (0, 1)


def test_a_policy_that_says_nothing_by_the_deadline_is_an_error_and_its_answer_is_dropped() -> None:
    async def scenario() -> None:
        rig = DeskRig(deadline_s=0.01)
        with pytest.raises(DeadlineMissed, match="deadline of 10 ms"):
            await rig.act(rig.desk.arrive("POST /act"), _never)
        rig.worker.step()
        assert not rig.policy.asked, "nobody waits for it"

    asyncio.run(scenario())


def test_a_client_that_hangs_up_is_not_computed_for(desk: DeskRig) -> None:
    async def scenario() -> None:
        with pytest.raises(ClientGone):
            await desk.act(desk.desk.arrive("websocket"), _at_once)
        desk.worker.step()
        assert not desk.policy.asked

    asyncio.run(scenario())


def test_a_request_for_other_units_never_reaches_the_policy(desk: DeskRig) -> None:
    other = ActionRequest(REQUEST.images, REQUEST.instruction, "hand")

    async def scenario() -> None:
        with pytest.raises(ObservationError, match="'hand'"):
            await desk.act(desk.desk.arrive("POST /act"), _never, other)

    asyncio.run(scenario())
    assert not desk.policy.asked
    assert "no action for POST /act: unnorm_key 'hand'" in desk.told.getvalue()


def test_closing_waits_for_what_is_under_way_and_takes_nothing_new(desk: DeskRig) -> None:
    async def scenario() -> None:
        acting = asyncio.ensure_future(desk.act(desk.desk.arrive("POST /act"), _never))
        await _until_asked(desk)
        closing = asyncio.ensure_future(desk.desk.close())
        await asyncio.sleep(0)
        with pytest.raises(Unreachable, match="stopping"):
            await desk.act(desk.desk.arrive("POST /act"), _never)
        assert not closing.done()
        desk.worker.step()
        assert await acting is CHUNK
        await closing

    asyncio.run(scenario())
