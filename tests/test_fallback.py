"""The fallback machine, guard by guard: each test fails when its guard is deleted."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest

from splitvla_edge.fallback import (
    REMOTE,
    TRANSITIONS,
    Chunk,
    Event,
    FallbackSettings,
    Miss,
    Outcome,
    Ready,
    State,
    deadline_s,
)
from splitvla_edge.fallback.guards import GUARDS
from splitvla_shared.errors import ConfigError
from tests.machine_bench import ACTION, DT, Bench, still


def test_the_table_covers_every_state_and_event() -> None:
    assert set(TRANSITIONS) == set(itertools.product(State, Event))
    assert [event for event, _, _ in GUARDS] == list(Event), "guards are asked worst first, in the order of the events"


@pytest.mark.parametrize("event", Event)
def test_safe_stop_is_left_by_the_operator_s_reset_only(event: Event) -> None:
    expected = State.INIT if event is Event.RESET else State.SAFE_STOP
    assert TRANSITIONS[State.SAFE_STOP, event].to is expected


def test_only_an_action_or_a_pending_answer_keeps_the_robot_out_of_hold() -> None:
    for (state, event), transition in TRANSITIONS.items():
        if transition.to in REMOTE:
            assert event in (Event.ACTION, Event.DEGRADED_ACTION, Event.COASTING)
            assert state is not State.LOCAL, "the local policy hands over through a hold"
        if transition.to is State.COAST:
            assert state in REMOTE | {State.WAIT}, "nobody begins to move on the rest of a chunk"
        if transition.to is State.WAIT:
            assert event is Event.PENDING
            assert state in (State.NOMINAL, State.DEGRADED, State.WAIT)
        if transition.to is State.LOCAL:
            assert event is Event.LOCAL_ACTION
            assert state in (State.HOLD, State.LOCAL)


def test_the_first_valid_action_arms_the_machine_and_is_executed() -> None:
    bench = Bench()
    command = bench.step(bench.reply())
    assert (command.state, command.values, command.sequence, command.index) == (State.NOMINAL, ACTION, 1, 0)
    assert command.age_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"ready": None}, Event.NOT_READY),
        ({"robot_ready": False}, Event.NOT_READY),
        ({"enabled": False}, Event.DISARMED),
        ({"frame_at": None}, Event.CAMERA_STALE),
    ],
)
def test_init_stays_disarmed_until_everything_is_ready(changes: dict[str, Any], cause: Event) -> None:
    bench = Bench()
    command = bench.step(bench.reply(), **changes, gripper=0.5)
    assert (command.state, command.cause) == (State.INIT, cause.value)
    assert still(command, 0.5)


def test_a_delta_is_never_repeated_while_the_next_answer_is_due() -> None:
    bench = Bench().nominal()
    command = bench.step(bench.asked(within=0.3))
    assert command.state is State.WAIT
    assert still(command, ACTION[2]), "zero motion, and the gripper's target is kept"


def test_an_answer_after_its_deadline_is_dead_even_when_it_arrives() -> None:
    bench = Bench().nominal()
    bench.step(bench.asked(within=0.05))
    late = replace(bench.reply(), sequence=bench.sequence - 1)
    command = bench.step(late)
    assert command.state is State.HOLD
    assert not command.motion


def test_a_deadline_that_passes_without_a_word_ends_in_hold() -> None:
    bench = Bench().nominal()
    assert bench.step(bench.asked(within=0.1)).state is State.WAIT
    assert bench.step().state is State.HOLD
    ghost = Chunk(bench.sequence, 1, bench.now, bench.now, (ACTION,))
    assert not bench.step(ghost).motion, "the sequence of the call that expired is dead"


def test_a_lost_answer_means_hold_although_the_next_call_is_in_flight() -> None:
    bench = Bench().nominal()
    bench.sequence += 1
    command = bench.step(Miss(bench.sequence, Outcome.MISSED), bench.asked(within=0.3))
    assert command.state is State.HOLD


def test_no_deadline_keeps_the_machine_waiting_for_longer_than_the_longest_one() -> None:
    bench = Bench().nominal()
    bench.step(bench.asked(within=math.inf))
    states = [bench.step().state for _ in range(4)]
    assert states[-1] is State.HOLD


def test_an_action_older_than_its_maximum_age_is_not_executed() -> None:
    bench = Bench()
    assert bench.step(bench.reply(age=0.29)).motion
    command = bench.step(bench.reply(age=0.31))
    assert (command.state, command.cause) == (State.HOLD, Event.TOO_OLD.value)
    assert still(command, ACTION[2])


@pytest.mark.parametrize(
    "changes",
    [
        {"actions": ((math.nan, 0.0, 1.0),)},
        {"actions": ((math.inf, 0.0, 1.0),)},
        {"actions": ((0.1, 0.2),)},
        {"actions": ()},
        {"clipped": 1},
        {"captured_at": 1e9},
        {"captured_at": math.nan},
    ],
)
def test_an_invalid_answer_means_hold_and_clipped_tokens_are_valid_only_where_accepted(changes: dict[str, Any]) -> None:
    bench = Bench().nominal()
    command = bench.step(bench.reply(**changes))
    assert (command.state, command.cause) == (State.HOLD, Event.INVALID.value)
    assert still(command, ACTION[2])
    accepting = Bench(accept_clipped=True)
    assert accepting.step(accepting.reply(**changes)).motion is ("clipped" in changes)


def test_three_answers_that_are_not_finite_in_a_row_stop_the_robot() -> None:
    bench = Bench().nominal()
    nan = ((math.nan, 0.0, 0.0),)
    assert bench.step(bench.reply(actions=nan)).state is State.HOLD
    assert bench.step(bench.reply(actions=nan)).state is State.HOLD
    command = bench.step(bench.reply(actions=nan))
    assert (command.state, command.cause, command.stop) == (State.SAFE_STOP, Event.NON_FINITE_RUN.value, True)


def test_a_good_answer_ends_a_row_of_bad_ones() -> None:
    bench = Bench().nominal()
    nan = ((math.nan, 0.0, 0.0),)
    for actions in (nan, nan, (ACTION,), nan, nan):
        assert bench.step(bench.reply(actions=actions)).state is not State.SAFE_STOP


def test_a_stale_camera_stops_motion_in_the_same_tick() -> None:
    bench = Bench().nominal()
    command = bench.step(bench.reply(), frame_at=bench.now + DT - 0.51)
    assert (command.state, command.cause) == (State.HOLD, Event.CAMERA_STALE.value)
    assert still(command, ACTION[2])


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"estop": True}, Event.ESTOP),
        ({"contract": "embed_dim: 4096 here, 896 there"}, Event.CONTRACT),
        ({"ready": Ready(7, 1, "")}, Event.CONTRACT),
        ({"lateness_s": 3 * DT + 0.001}, Event.OVERRUN),
    ],
)
def test_what_stops_the_robot_does_so_in_the_same_tick_and_latches(changes: dict[str, Any], cause: Event) -> None:
    bench = Bench().nominal()
    command = bench.step(bench.reply(), **changes)
    assert (command.state, command.cause, command.stop) == (State.SAFE_STOP, cause.value, True)
    assert still(command, ACTION[2])
    later = bench.step(bench.reply())
    assert (later.state, later.cause, later.motion) == (State.SAFE_STOP, cause.value, False)


def test_the_worst_event_of_a_tick_wins() -> None:
    bench = Bench().nominal()
    assert bench.step(bench.reply(), lateness_s=3 * DT).motion, "an overrun of just three periods is borne"
    assert bench.step(bench.reply(), estop=True, reset=True, frame_at=None).cause == Event.ESTOP.value


def test_a_robot_or_perception_that_is_not_ready_means_hold_and_a_disarmed_one_is_back_in_init() -> None:
    disarmed = Bench().nominal()
    assert disarmed.step(disarmed.reply(), enabled=False).state is State.INIT
    for changes in ({"robot_ready": False}, {"ready": None}):
        bench = Bench().nominal()
        command = bench.step(bench.reply(), **changes)
        assert (command.state, command.cause) == (State.HOLD, Event.NOT_READY.value)


def test_a_reset_begins_a_new_epoch_in_which_old_answers_never_count() -> None:
    bench = Bench().nominal()
    bench.step(estop=True)
    old = bench.reply()
    command = bench.step(reset=True)
    assert (command.state, command.epoch) == (State.INIT, 2)
    before = bench.reply(captured_at=bench.now - 0.05, sequence=40)
    assert bench.step(before).state is State.INIT, "asked after the reset on a frame from before it"
    assert bench.step(replace(old, captured_at=bench.now + 0.1, sequence=50)).state is State.INIT
    bench.sequence = 60
    assert bench.step(bench.reply()).state is State.NOMINAL


def test_an_answer_is_executed_once_and_sequences_never_fall() -> None:
    bench = Bench().nominal()
    twice = bench.reply()
    assert bench.step(twice).motion
    assert not bench.step(replace(twice, captured_at=bench.now)).motion
    assert not bench.step(replace(twice, sequence=1, captured_at=bench.now)).motion


def test_a_deadline_is_what_is_left_of_the_frame_s_age_within_bounds() -> None:
    assert deadline_s(0.05, 0.3, 0.1, 0.5) == pytest.approx(0.25)
    assert deadline_s(0.28, 0.3, 0.1, 0.5) == pytest.approx(0.1)
    assert deadline_s(0.0, 1.0, 0.1, 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "changes",
    [{"max_age_ms": -1.0}, {"max_age_ms": math.nan}, {"resume_replies": 0}, {"deadline_min_ms": 900.0}],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"fallback\."):
        replace(FallbackSettings(), **changes)
