"""What the robot is sent: chunks action by action, limits, and holding still in every action space."""

from __future__ import annotations

import math
from typing import Any

import pytest

from splitvla_edge.fallback import (
    Event,
    FallbackSettings,
    Miss,
    Mode,
    Outcome,
    State,
)
from splitvla_edge.fallback.motion import shape
from splitvla_edge.robots.action_space import ActionSpace, Kind
from tests.machine_bench import ABSOLUTE, ACTION, ROWS, Bench


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
    assert bench.step(position=None).values == (), "nothing known: nothing is sent"
    assert bench.step(position=(0.3, 0.4)).values == (0.3, 0.4)
    bench.step(bench.reply(actions=((0.4, 0.5),)), position=(0.3, 0.4))
    assert bench.step(Miss(9, Outcome.MISSED), position=(0.35, 0.45)).values == (0.4, 0.5)
    reset = bench.step(reset=True, position=(0.7, 1.2))
    assert reset.values == (0.7, 1.2), "an operator may have moved the arm: the old set point is forgotten"


@pytest.mark.parametrize("changes", [{"estop": True}, {"robot_ready": False}, {"enabled": False}])
def test_an_arm_that_takes_no_commands_may_be_moved_by_hand_and_is_held_where_it_was_left(
    changes: dict[str, Any],
) -> None:
    bench = Bench(ABSOLUTE, dt=0.05)
    bench.step(bench.reply(actions=((0.04, 0.0),)))
    for _ in range(5):
        bench.step(**changes, position=(0.2, 0.1))
    assert bench.step(**changes, position=(0.5, 0.3)).values == (0.5, 0.3), "not the set point of before"
    assert bench.step(**changes, position=None).values == ()
    assert bench.step(position=None).values == (), "nothing known: nothing is sent"
    assert bench.step(position=(0.6, 0.3)).values == (0.6, 0.3)
    assert bench.step(position=(0.59, 0.3)).values == (0.6, 0.3), "an arm that sags is not followed down"
    assert bench.step(reset=True, position=(0.7, 0.3)).values == (0.7, 0.3)


def test_a_driver_s_hiccup_does_not_take_a_sagging_arm_down() -> None:
    bench = Bench(ABSOLUTE, dt=0.05)
    bench.step(bench.reply(actions=((0.04, 0.0),)), position=(0.0, 0.0))
    held = bench.step(position=(0.0, -0.01)).values
    for sag in range(2, 6):
        assert bench.step(robot_ready=False, position=None).values == held
        assert bench.step(position=(0.0, -0.01 * sag)).values == held


def test_a_motion_begins_where_the_arm_is_measured_and_goes_on_from_its_set_points() -> None:
    bench = Bench(ABSOLUTE, dt=0.05)
    bench.step(bench.reply(actions=((0.0, 0.0),)))
    bench.step(bench.miss())
    for _ in range(3):
        bench.step(position=(0.5, 0.0))
    pushed: dict[str, Any] = {"position": (0.5, 0.0)}
    bench.step(bench.reply(age=0.02, actions=((0.53, 0.0),)), **pushed)
    first = bench.step(bench.reply(age=0.02, actions=((0.53, 0.0),)), **pushed)
    second = bench.step(bench.reply(age=0.02, actions=((0.53, 0.0),)), **pushed)
    assert [first.values[0], second.values[0]] == pytest.approx([0.51, 0.51 + 0.02 * 2 / 3])


def test_the_local_policy_too_begins_where_the_arm_is_measured() -> None:
    bench = Bench(ABSOLUTE, dt=0.05, mode=Mode.FORCED_LOCAL)
    pushed: dict[str, Any] = {"position": (0.5, 0.0)}
    bench.step(position=(0.0, 0.0))
    commands = [bench.step(local=bench.local(actions=((0.6, 0.0),)), **pushed) for _ in range(12)]
    moved = [command.values[0] for command in commands if command.motion]
    assert moved[:2] == pytest.approx([0.5 + 0.0125, 0.5 + 0.025])


def test_an_arm_parked_outside_the_limits_is_sent_nothing_and_the_local_policy_does_not_move_it() -> None:
    bench = Bench(ABSOLUTE, dt=0.05, mode=Mode.FORCED_LOCAL)
    commands = [
        bench.step(local=bench.local(actions=((1.9, 0.0),)), position=(2.5, 0.0)) for _ in range(20)
    ]  # a command inside the limits would be a jump
    assert {command.values for command in commands} == {()}
    assert bench.step(position=(2.003, 0.0)).values == (2.0, 0.0), "a thousandth of the range is the encoder's"


def test_a_reset_keeps_the_gripper_s_target_which_was_commanded_and_not_its_opening_on_an_object() -> None:
    bench = Bench()
    assert bench.step(gripper=0.7).values[2] == 0.7, "before the first command: as it is"
    bench.step(bench.reply(actions=((0.1, 0.0, 0.0),)), gripper=0.7)
    bench.step(estop=True, gripper=0.35)
    held = [bench.step(reset=True, gripper=0.35), bench.step(gripper=0.35)]
    assert [command.values[2] for command in held] == [0.0, 0.0]


def test_a_gripper_of_which_nobody_knows_anything_is_told_nothing_until_the_robot_takes_commands() -> None:
    """After a restart it may hold an object, and `gripper_start` may open it."""
    bench = Bench()
    for away in ({"robot_ready": False}, {"enabled": False}, {"robot_ready": False, "gripper": math.nan}):
        assert bench.step(**away).values == ()
    assert bench.step(robot_ready=False, gripper=0.3).values == (0.0, 0.0, 0.3), "measured: kept"
    assert bench.step(robot_ready=False).values == (0.0, 0.0, 0.3)
    silent = Bench()
    assert silent.step().values == (0.0, 0.0, 0.5), "one that takes commands and measures none: as declared"
    assert silent.step(robot_ready=False).values == (0.0, 0.0, 0.5)
    stopped = Bench().step(estop=True, robot_ready=False)
    assert (stopped.values, stopped.stop) == ((), True)


def test_an_opening_that_is_no_number_is_not_the_gripper_s_target() -> None:
    bench = Bench()
    bench.step(gripper=0.7)
    assert bench.step(gripper=math.nan).values[2] == 0.7
    assert bench.step(gripper=math.inf).values[2] == 0.7


def test_a_velocity_ramps_to_zero() -> None:
    bench = Bench(ActionSpace(Kind.VELOCITY, (-1.0,), (1.0,)))
    bench.step(bench.reply(actions=((0.8,),)))
    miss = Miss(9, Outcome.MISSED)
    assert bench.step(miss, dt=0.05).values == pytest.approx((0.4,))
    assert bench.step(dt=0.06).values == (0.0,)


def test_a_set_point_ends_inside_the_limits_even_when_the_arm_was_pushed_out_of_them() -> None:
    assert shape(ABSOLUTE, (1.0, 0.0), (2.5, 0.0), ABSOLUTE.step_limits(0.05)) == (2.0, 0.0)


def test_an_e_stop_ends_the_ramp_of_a_velocity_that_another_stop_began_and_it_does_not_come_back() -> None:
    bench = Bench(ActionSpace(Kind.VELOCITY, (-1.0,), (1.0,)))
    bench.step(bench.reply(actions=((0.8,),)))
    ramp = bench.step(contract="embed_dim", dt=0.02)
    assert ramp.values == pytest.approx((0.64,))
    assert not ramp.stop
    pressed = bench.step(estop=True, dt=0.02)
    assert (pressed.values, pressed.stop) == ((0.0,), True)
    released = bench.step(dt=0.02)
    assert (released.values, released.stop) == ((0.0,), True)
