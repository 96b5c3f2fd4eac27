"""What the GPU's thread learns of passes and answers, turn by turn on a clock that the test moves; no thread runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import numpy as np
import pytest

from splitvla_cloud.engine.interface import Frame, Outcome, Tokens
from splitvla_cloud.worker import GpuWorker, Served
from splitvla_shared.errors import DeadlineMissed, EarlyStop, Overloaded, RequestRejected, ServerFault

DIMS = 7
RIGHT = (5,) * DIMS


class Scripted:
    """An engine whose frames take `passes` of `decode_s` each, `prefill_s` for one with new frames. Mutable: the clock,
    and what the next pass ends with."""

    vocab_size, capacity = 32064, 4
    pass_costs: Mapping[int, float] = {1: 0.4}
    prefill_s, decode_s = 0.4, 0.1

    def __init__(self) -> None:
        self.now = 100.0
        self.inside: dict[Frame, int] = {}
        self.passes: list[int] = []  # new frames of each
        self.ends_with: Sequence[Tokens | Exception] = ()

    def clock(self) -> float:
        return self.now

    def describe(self) -> str:
        return "scripted"

    def admit(self, frame: Frame) -> None:
        if frame.dims > DIMS:
            raise RequestRejected("too long")
        self.inside[frame] = 0

    def cancel(self, frame: Frame) -> None:
        self.inside.pop(frame, None)

    def step(self) -> list[Outcome]:
        fresh = sum(not passes for passes in self.inside.values())
        self.passes.append(fresh)
        self.now += self.prefill_s if fresh else self.decode_s
        ended = [Outcome(frame, result) for frame, result in zip(self.inside, self.ends_with, strict=False)]
        self.inside = {frame: passes + 1 for frame, passes in self.inside.items()}
        for outcome in ended:
            del self.inside[outcome.frame]
        self.ends_with = ()
        return ended


@pytest.fixture
def engine() -> Scripted:
    return Scripted()


@pytest.fixture
def worker(engine: Scripted) -> GpuWorker:
    worker = GpuWorker(lambda: engine, 8, clock=engine.clock)
    assert worker._load_engine() is engine
    return worker


def submit(
    worker: GpuWorker,
    session: int,
    *,
    dims: int = DIMS,
    draft: tuple[int, ...] = (),
    sequence: int = 1,
    deadline: float = math.inf,
) -> Future[Served]:
    return worker.submit(Frame(session, sequence, (1, 2), np.zeros((2, 4), np.float32), dims, deadline, draft))


def turn(worker: GpuWorker, engine: Scripted, ends_with: Sequence[Tokens | Exception] = ()) -> None:
    engine.ends_with = ends_with
    assert worker.turn(engine)


def test_a_frame_that_was_refused_is_no_part_of_what_a_pass_cost(worker: GpuWorker, engine: Scripted) -> None:
    submit(worker, 1)
    turn(worker, engine)
    turn(worker, engine)
    refused = submit(worker, 2, dims=DIMS + 1)
    turn(worker, engine)
    assert isinstance(refused.exception(0), RequestRejected)
    assert engine.passes == [1, 0, 0]
    assert (worker._cost.of(0), worker._cost.of(1)) == pytest.approx((0.1, 0.4))


@pytest.mark.parametrize(("draft", "joins_after"), [((), 2), (RIGHT, None)])
def test_a_newcomer_waits_for_a_frame_that_has_outlived_the_mean_only_where_that_is_sooner(
    worker: GpuWorker, engine: Scripted, draft: tuple[int, ...], joins_after: int | None
) -> None:
    """Answers took two passes each; now one without a draft takes a pass an id, five more. One with a draft may take
    a single one more: half a second for one id is not worth the newcomer's 0.1 s."""
    for session in (1, 2):
        submit(worker, session, draft=RIGHT)
        turn(worker, engine)
        turn(worker, engine, [Tokens(RIGHT, 0.0, 0.0)])
    submit(worker, 3, draft=draft)
    turn(worker, engine)
    turn(worker, engine)
    submit(worker, 4, draft=RIGHT)
    turn(worker, engine)
    assert engine.passes[-3:] == ([1, 0, 1] if joins_after else [1, 0, 0])


def test_a_frame_that_has_outlived_the_mean_still_costs_a_newcomer_a_pass(worker: GpuWorker, engine: Scripted) -> None:
    """Where a prefill costs little more than a pass it comes in at once, instead of waiting for who knows how long."""
    engine.prefill_s = 0.15
    worker._cost.learn(1, 0.15, engine.now)
    worker._cost._means[1] = 0.15
    submit(worker, 1, draft=RIGHT)
    turn(worker, engine)
    turn(worker, engine, [Tokens(RIGHT, 0.0, 0.0)])
    submit(worker, 2, draft=(6,) * DIMS)
    for _ in range(3):
        turn(worker, engine)
    submit(worker, 3, draft=RIGHT)
    turn(worker, engine)
    assert engine.passes == [1, 0, 1, 0, 0, 1]


def test_only_passes_that_failed_one_after_another_have_the_gpu_taken_for_lost(
    worker: GpuWorker, engine: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that ends early was computed, and so was a pass in which nobody's answer was complete."""
    caplog.set_level(logging.CRITICAL)
    fault = RuntimeError("CUDA error: a slip")
    sequence = 0

    def one(ends_with: Sequence[Tokens | Exception]) -> None:
        nonlocal sequence
        sequence += 1
        submit(worker, 1, sequence=sequence)
        turn(worker, engine, ends_with)

    for good in (EarlyStop("position 3 of 7"), None, Tokens(RIGHT, 0.0, 0.0)):
        one([fault])
        one([fault])
        assert worker._faults == 2
        one([] if good is None else [good])
        assert worker._faults == 0
        if good is None:
            turn(worker, engine, [Tokens(RIGHT, 0.0, 0.0)])
    one([fault])
    submit(worker, 3)
    submit(worker, 4)
    turn(worker, engine, [fault])
    assert worker._faults == 0, "of the one that goes on an id was computed"
    turn(worker, engine, [Tokens(RIGHT, 0.0, 0.0)])
    one([fault])
    one([ServerFault("a logit is not finite")])  # no success, and nothing that a new process would mend for sure
    assert worker._faults == 1


def test_a_frame_that_nobody_waits_for_leaves_the_gpu_after_the_running_pass(
    worker: GpuWorker, engine: Scripted
) -> None:
    gone, late, waits = submit(worker, 1), submit(worker, 2, deadline=engine.now + 0.45), submit(worker, 3)
    turn(worker, engine)
    assert [frame.session for frame in engine.inside] == [2, 1, 3]
    gone.cancel()
    turn(worker, engine)
    assert [frame.session for frame in engine.inside] == [2, 3], "its deadline passes during this pass"
    turn(worker, engine)
    assert [frame.session for frame in engine.inside] == [3]
    with pytest.raises(DeadlineMissed, match=r"^frame 1: its deadline passed after 500 ms on the GPU$"):
        late.result(0)
    turn(worker, engine, [Tokens(RIGHT, 0.0, 0.0)])
    assert waits.result(0).tokens.ids == RIGHT


def test_who_finds_the_queue_full_is_told_to_come_back_when_half_of_it_is_done(
    worker: GpuWorker, engine: Scripted
) -> None:
    for session in range(8):
        submit(worker, session)
    with pytest.raises(Overloaded) as caught:
        submit(worker, 8)
    assert caught.value.retry_after_s == pytest.approx(4 * 0.4)


def test_no_frame_is_left_without_an_answer_where_taking_one_in_ends_the_thread(
    worker: GpuWorker, engine: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def admit(frame: Frame) -> None:
        raise AssertionError("a slip of ours")

    monkeypatch.setattr(engine, "admit", admit)
    futures = [submit(worker, session) for session in (1, 2)]
    with pytest.raises(AssertionError):
        turn(worker, engine)
    assert [frame.session for frame in worker._running] == [1, 2], "whom the thread's end answers"
    assert not any(future.done() for future in futures)
