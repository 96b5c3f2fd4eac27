"""Chunks of actions: which rung they came from, what plays on when the next one is late, and how it slows down."""

from __future__ import annotations

import itertools

import pytest

from splitvla_edge.fallback import Command, Event, State
from splitvla_shared.nouns import StageTimes
from tests.machine_bench import ABSOLUTE, Bench

EIGHT = ((0.4, 0.0, 1.0),) * 8
STAGES = StageTimes(network_ms=20.0, prefill_ms=60.0, total_ms=90.0)


def running() -> Bench:
    """A chunk of eight is being played, past the blend, and the next call is in flight."""
    bench = Bench(chunk_length=8, dt=0.05)
    for _ in range(4):
        bench.step(bench.reply(actions=EIGHT, stages=STAGES))
    bench.step(bench.asked(within=0.5))
    return bench


def lost(bench: Bench) -> Command:
    return bench.step(bench.miss())


def test_a_chunk_whose_successor_is_lost_is_played_on_and_slows_down_at_its_end() -> None:
    bench = running()
    first = lost(bench)
    assert (first.state, first.cause, first.motion) == (State.COAST, Event.COASTING.value, True)
    played = [first]
    while played[-1].motion:
        played.append(bench.step())
    speeds = [command.values[0] for command in played[:-1]]
    indices = [command.index for command in played[:-1]]
    assert indices == list(range(indices[0] or 0, 8)), "each action once, in order"
    assert speeds[-4:] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert all(command.values[2] == 1.0 for command in played), "the gripper keeps its target"
    assert played[-1].state is State.HOLD


def test_a_coasting_robot_holds_in_the_tick_in_which_its_actions_are_too_old() -> None:
    bench = Bench(chunk_length=8, dt=0.05)
    bench.step(bench.reply(age=0.3, actions=EIGHT))
    lost(bench)
    commands = [bench.step() for _ in range(5)]
    ages = [command.age_s for command in commands if command.age_s is not None]
    assert max(ages) <= 0.5 + 1e-6
    assert [command.motion for command in commands] == [True] * 3 + [False] * 2
    assert commands[3].cause == Event.TOO_OLD.value
    assert commands[2].values[0] == pytest.approx(0.1), "the tail ends where the age does, not where the chunk would"


def test_a_fresh_chunk_ends_the_coasting() -> None:
    bench = running()
    lost(bench)
    assert bench.step(bench.reply(actions=EIGHT)).state is State.NOMINAL


def test_an_answer_later_than_nineteen_in_twenty_is_late_before_its_deadline() -> None:
    bench = Bench(chunk_length=8, dt=0.05)
    for _ in range(10):
        bench.step(bench.reply(age=0.1, actions=EIGHT, stages=STAGES, wire_bytes=2_097_152))
    asked = bench.asked(within=0.5)
    states = [bench.step(asked).state] + [bench.step().state for _ in range(4)]
    assert states == [State.NOMINAL] * 3 + [State.COAST] * 2


def test_a_robot_that_is_asked_for_nothing_coasts() -> None:
    bench = Bench(chunk_length=16, dt=0.05)
    bench.step(bench.reply(actions=((0.4, 0.0, 1.0),) * 16))
    states = [bench.step().state for _ in range(7)]
    assert (states[0], states[-1]) == (State.NOMINAL, State.COAST)


def test_actions_from_a_smaller_payload_are_degraded() -> None:
    bench = Bench().nominal()
    assert bench.step(bench.reply(rung=1)).state is State.DEGRADED
    assert bench.step(bench.asked(within=0.3)).state is State.WAIT
    assert bench.step(bench.reply(rung=1)).state is State.DEGRADED
    assert bench.step(bench.reply()).state is State.NOMINAL


def test_a_chunk_that_arrives_together_with_a_miss_does_not_start_a_robot_that_holds() -> None:
    bench = running()
    lost(bench)
    while bench.step().state is not State.HOLD:
        pass
    for _ in range(3):
        bench.step()
    bench.step(bench.reply(age=0.02, actions=EIGHT))
    chunk = bench.reply(age=0.02, actions=EIGHT)
    bench.sequence += 1
    assert bench.step(chunk, bench.miss()).state is State.HOLD


def test_an_absolute_set_point_moves_no_faster_than_its_limit() -> None:
    bench = Bench(ABSOLUTE, chunk_length=8, dt=0.05)
    rows = ((0.04, 0.0), *((1.0, 0.0),) * 7)
    played = [bench.step(bench.reply(age=0.01, actions=rows)), *(bench.step() for _ in range(3))]
    steps = [after.values[0] - before.values[0] for before, after in itertools.pairwise(played)]
    assert steps == pytest.approx([0.05] * 3)
