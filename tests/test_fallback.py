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
    Asked,
    Chunk,
    Command,
    Event,
    FallbackSettings,
    Miss,
    Outcome,
    Ready,
    Reply,
    State,
    TickInputs,
    deadline_s,
)
from splitvla_edge.fallback.guards import GUARDS
from splitvla_edge.fallback.machine import FallbackMachine
from splitvla_edge.robots.base import ActionSpace, Kind
from splitvla_shared.errors import ConfigError

DT = 0.2
SPACE = ActionSpace(Kind.DELTA_EE, (-1.0, -1.0, 0.0), (1.0, 1.0, 1.0), gripper=2, gripper_start=0.5)
ABSOLUTE = ActionSpace(Kind.ABSOLUTE, (-2.0,) * 2, (2.0,) * 2, max_speed=(1.0, 1.0))
ACTION = (0.1, -0.2, 1.0)
ROWS = ((0.1, 0.0, 1.0), (0.2, 0.0, 1.0), (0.3, 0.0, 1.0))


class Bench:
    """A machine and a clock. `step` moves the clock and ticks with a fresh camera and a ready robot."""

    def __init__(self, space: ActionSpace = SPACE, *, accept_clipped: bool = False, chunk_length: int = 1) -> None:
        self.machine = FallbackMachine(FallbackSettings(), space, DT, accept_clipped=accept_clipped)
        self.now = 100.0
        self.sequence = 0
        self.calm = TickInputs(ready=Ready(space.dims, chunk_length, "f" * 16))

    def step(self, *replies: Reply, dt: float = DT, **changes: Any) -> Command:
        self.now += dt
        inputs = replace(self.calm, replies=replies, frame_at=self.now - 0.01)
        return self.machine.tick(self.now, replace(inputs, **changes))

    def reply(self, age: float = 0.1, *, after: float = DT, **changes: Any) -> Chunk:
        """A chunk that will have this age when the clock is `after` further."""
        self.sequence += 1
        arrives = self.now + after
        chunk = Chunk(self.sequence, self.machine.epoch, arrives - age, arrives - 0.01, (ACTION,))
        return replace(chunk, **changes)

    def asked(self, within: float, *, after: float = DT) -> Asked:
        self.sequence += 1
        arrives = self.now + after
        return Asked(self.sequence, self.machine.epoch, arrives - 0.01, arrives + within)

    def nominal(self) -> Bench:
        assert self.step(self.reply()).state is State.NOMINAL
        return self

    def held(self) -> Bench:
        self.nominal()
        assert self.step(Miss(self.sequence, Outcome.MISSED)).state is State.HOLD
        return self


def still(command: Command, gripper: float) -> bool:
    return not command.motion and command.values == (0.0, 0.0, gripper)


def test_the_table_covers_every_state_and_event() -> None:
    assert set(TRANSITIONS) == set(itertools.product(State, Event))
    assert [event for event, _ in GUARDS] == list(Event), "guards are asked worst first, in the order of the events"


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
    command = bench.step(bench.reply(), **changes)
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


def test_hold_is_left_after_two_answers_in_a_row_from_frames_after_the_robot_settled() -> None:
    bench = Bench().held()
    first = bench.step(bench.reply(age=0.05))
    assert (first.state, first.cause) == (State.HOLD, Event.UNPROVEN.value)
    assert bench.step(bench.reply(age=0.05)).state is State.NOMINAL


def test_a_miss_between_two_answers_starts_the_proof_of_the_link_anew() -> None:
    bench = Bench().held()
    bench.step(bench.reply(age=0.05))
    bench.step(Miss(bench.sequence + 1, Outcome.MISSED))
    bench.sequence += 1
    assert bench.step(bench.reply(age=0.05)).state is State.HOLD
    assert bench.step(bench.reply(age=0.05)).state is State.NOMINAL


def test_nothing_from_a_frame_captured_before_the_robot_settled_is_executed() -> None:
    bench = Bench().held()
    began = bench.now
    early = [bench.reply(captured_at=began + 0.05, after=0.01), bench.reply(captured_at=began + 0.09, after=0.01)]
    assert bench.step(*early, dt=0.1).state is State.HOLD
    assert bench.step(bench.reply(captured_at=began + 0.1, after=0.01), dt=0.1).state is State.NOMINAL


def test_the_proof_of_the_link_begins_with_the_hold() -> None:
    bench = Bench().nominal()
    bench.step(bench.reply())
    bench.step(frame_at=None)
    assert bench.step(bench.reply(age=0.05)).cause == Event.UNPROVEN.value
    assert bench.step(bench.reply(age=0.05)).state is State.NOMINAL


def test_the_rest_of_a_chunk_is_not_played_on_after_a_hold() -> None:
    bench = Bench(chunk_length=3)
    bench.step(bench.reply(actions=(ACTION,) * 3))
    bench.step(frame_at=None, dt=0.02)
    early = [bench.reply(captured_at=bench.now, after=0.02) for _ in range(2)]
    assert bench.step(*early, dt=0.02).state is State.HOLD


def test_holding_for_five_seconds_stops_the_robot() -> None:
    bench = Bench().held()
    began = bench.now
    stopped = [bench.now - began for _ in range(40) if bench.step().state is State.SAFE_STOP]
    assert bench.machine.cause == Event.HOLD_TIMEOUT.value
    assert stopped[0] == pytest.approx(5.0, abs=DT)


def flap(bench: Bench, held: int, moving: int) -> State:
    """One round of a flapping link: about so many ticks in HOLD, then so many in NOMINAL."""
    bench.sequence += 1
    bench.step(Miss(bench.sequence, Outcome.MISSED))
    for _ in range(held):
        bench.step()
    for _ in range(moving + 1):
        bench.step(bench.reply(age=0.05))
    return bench.machine.state


def test_a_flapping_link_reaches_safe_stop_because_hold_time_refills_slowly() -> None:
    bench = Bench().nominal()
    states = [flap(bench, held=9, moving=15) for _ in range(6)]
    assert states[:2] == [State.NOMINAL, State.NOMINAL]
    assert states[-1] is State.SAFE_STOP, "each round drains 2.2 s and gives 0.75 s back"


def test_a_link_that_fails_seldom_never_reaches_safe_stop() -> None:
    bench = Bench().nominal()
    assert {flap(bench, held=3, moving=25) for _ in range(10)} == {State.NOMINAL}


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


def test_actions_are_clipped_to_the_limits_of_the_action_space() -> None:
    bench = Bench()
    assert bench.step(bench.reply(actions=((5.0, -7.0, -1.0),))).values == (1.0, -1.0, 0.0)


def test_a_chunk_is_played_action_by_action_and_then_the_robot_holds() -> None:
    bench = Bench(chunk_length=3)
    played = [bench.step(bench.reply(actions=ROWS)), bench.step(), bench.step(bench.asked(within=0.3))]
    assert [(command.index, command.values) for command in played] == list(enumerate(ROWS))
    held = bench.step()
    assert (held.state, held.motion) == (State.HOLD, False), "an answer that is due is nothing to wait on, for chunks"


def test_a_chunk_begins_after_the_actions_executed_since_its_frame_was_taken() -> None:
    bench = Bench(chunk_length=3)
    bench.step(bench.reply(actions=ROWS))
    captured_at = bench.now + 0.01
    bench.step()
    command = bench.step(bench.reply(actions=ROWS, captured_at=captured_at))
    assert (command.sequence, command.index) == (2, 1)


def test_the_rest_of_a_chunk_is_dropped_when_its_frame_is_too_old() -> None:
    settings = FallbackSettings()
    assert settings.max_age_s(0.05, 8) == pytest.approx(0.5)
    assert settings.max_age_s(0.2, 8) == pytest.approx(1.0)
    assert settings.max_age_s(0.2, 1) == pytest.approx(0.3)
    bench = Bench(chunk_length=8)
    bench.step(bench.reply(age=0.5, actions=(ACTION,) * 8))
    commands = [bench.step() for _ in range(4)]
    assert [command.motion for command in commands] == [True, True, False, False]
    assert commands[2].cause == Event.TOO_OLD.value


def test_an_absolute_space_holds_the_last_set_point_and_before_it_the_measured_pose() -> None:
    bench = Bench(ABSOLUTE)
    assert bench.step().values == (), "nothing known: nothing is sent"
    assert bench.step(position=(0.3, 0.4)).values == (0.3, 0.4)
    bench.step(bench.reply(actions=((0.4, 0.5),)), position=(0.3, 0.4))
    assert bench.step(Miss(9, Outcome.MISSED), position=(0.35, 0.45)).values == (0.4, 0.5)
    reset = bench.step(reset=True, position=(0.7, 1.2))
    assert reset.values == (0.7, 1.2), "an operator may have moved the arm: the old set point is forgotten"


def test_a_velocity_ramps_to_zero() -> None:
    bench = Bench(ActionSpace(Kind.VELOCITY, (-1.0,), (1.0,)))
    bench.step(bench.reply(actions=((0.8,),)))
    miss = Miss(9, Outcome.MISSED)
    assert bench.step(miss, dt=0.05).values == pytest.approx((0.4,))
    assert bench.step(dt=0.06).values == (0.0,)


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
