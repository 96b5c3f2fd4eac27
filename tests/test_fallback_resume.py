"""How a hold ends: the link proves itself, the robot has settled, and hold time is spent and refilled."""

from __future__ import annotations

from typing import Any

import pytest

from splitvla_edge.fallback import Command, Event, Miss, Outcome, State
from tests.machine_bench import ABSOLUTE, ACTION, DT, LADDER, Bench


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


def resumed(bench: Bench, **changes: Any) -> Command:
    """The tick after which a hold should be over: the second of two answers in time."""
    bench.step(bench.reply(age=0.02), **changes)
    return bench.step(bench.reply(age=0.02), **changes)


def test_a_hold_for_a_stale_camera_lasts_until_frames_have_come_for_a_while() -> None:
    bench = Bench(dt=0.05).nominal()
    bench.step(bench.reply(), frame_at=None)
    causes = [bench.step(bench.reply(age=0.0)).cause for _ in range(5)]
    assert causes[1:4] == [Event.CLEARING.value, Event.CLEARING.value, Event.ACTION.value]


def test_a_camera_that_shows_one_frame_and_no_second_is_not_back() -> None:
    bench = Bench(dt=0.05).nominal()
    bench.step(bench.reply(), frame_at=None)
    frame_at = bench.now + 0.05
    states = {bench.step(bench.reply(age=0.0), frame_at=frame_at).state for _ in range(9)}
    assert states == {State.HOLD}


def test_a_hold_for_a_robot_that_was_not_ready_lasts_until_it_has_been_for_a_while() -> None:
    bench = Bench(dt=0.05).nominal()
    bench.step(bench.reply(), robot_ready=False)
    states = [bench.step(bench.reply(age=0.0)).state for _ in range(5)]
    assert states == [State.HOLD] * 3 + [State.NOMINAL] * 2


@pytest.mark.parametrize("changes", [{"robot_ready": False}, {"enabled": False}])
def test_in_init_nothing_counts_from_a_frame_that_shows_the_robot_while_it_took_no_commands(
    changes: dict[str, Any],
) -> None:
    bench = Bench(dt=0.05)
    for _ in range(4):
        assert not bench.step(bench.reply(age=0.04), **changes).motion
    ended = bench.now
    early = bench.step(bench.reply(captured_at=ended - 0.01))
    assert (early.state, early.motion) == (State.INIT, False)
    bench.step()
    assert not bench.step(bench.reply(captured_at=ended + 0.099)).motion
    assert bench.step(bench.reply(captured_at=ended + 0.1)).state is State.NOMINAL


def test_a_robot_that_is_not_ready_in_the_middle_of_a_hold_settles_anew() -> None:
    rows = (ACTION,) * 8
    bench = Bench(dt=0.05, chunk_length=8).held()
    for _ in range(3):
        bench.step()
    bench.step(bench.reply(age=0.01, actions=rows))
    bench.step(bench.reply(age=0.01, actions=rows), robot_ready=False)
    ended = bench.now
    commands = [bench.step(bench.reply(captured_at=ended + 0.001 * n, actions=rows)) for n in range(6)]
    assert not any(command.motion for command in commands), "the scene may be another one"
    assert bench.step(bench.reply(captured_at=ended + 0.1, actions=rows)).motion


def test_motion_begins_softly_after_a_hold() -> None:
    bench = Bench(dt=0.05).held()
    for _ in range(3):
        bench.step()
    first = resumed(bench)
    later = [bench.step(bench.reply(age=0.02)) for _ in range(3)]
    assert [command.values[0] for command in (first, *later)] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1])
    assert first.values[2] == ACTION[2], "a gripper's target is not blended"


def test_a_first_target_that_is_too_far_from_the_measured_pose_is_not_followed() -> None:
    bench = Bench(ABSOLUTE, dt=0.05)
    far, near = ((0.5, 0.0),), ((0.049, 0.0),)
    command = bench.step(bench.reply(actions=far))
    assert (command.state, command.motion) == (State.INIT, False)
    assert bench.step(bench.reply(actions=near)).motion
    bench.step(bench.miss())
    for _ in range(3):
        bench.step()
    bench.step(bench.reply(age=0.02, actions=far))
    assert bench.step(bench.reply(age=0.02, actions=far)).cause == Event.JUMP.value
    assert bench.step(bench.reply(age=0.02, actions=near)).motion


def test_an_absolute_target_is_not_followed_by_a_robot_whose_pose_nobody_knows() -> None:
    bench = Bench(ABSOLUTE, dt=0.05)
    for _ in range(3):
        command = bench.step(bench.reply(age=0.02, actions=((0.0, 0.0),)), position=None)
        assert (command.state, command.cause, command.values) == (State.INIT, Event.UNPLACED.value, ())
    assert bench.step(bench.reply(age=0.02, actions=((0.0, 0.0),))).motion


def test_probes_are_small_and_kept_apart_by_a_jittered_gap() -> None:
    bench = Bench(dt=0.05).nominal()
    bench.step()
    assert (bench.machine.hint().rung, bench.machine.hint().gap_s) == (0, 0.0)
    bench.step(bench.miss())
    gaps = []
    for _ in range(8):
        bench.step(bench.asked(within=0.1))
        hint = bench.machine.hint()
        assert hint.rung == len(LADDER) - 1
        assert hint == bench.machine.hint(), "one draw a probe, not one a tick"
        gaps.append(hint.gap_s)
    assert len(set(gaps)) == 8
    assert all(0.1 <= gap <= 0.15 for gap in gaps)


def test_probes_have_a_short_deadline_but_every_fourth_in_a_row_that_fails_a_long_one() -> None:
    bench = Bench(dt=0.05).held()
    deadlines = []
    for _ in range(8):
        deadlines.append(bench.machine.hint().deadline_max_s)
        bench.asked(within=0.1)
        bench.step(bench.miss())
    assert deadlines == [0.3, 0.3, 0.5, 0.3] * 2


def test_a_call_that_expires_before_its_miss_arrives_is_one_miss() -> None:
    bench = Bench(dt=0.05).nominal()
    deadlines = []
    for _ in range(8):
        bench.step(bench.asked(within=0.04))
        bench.step()
        bench.step(Miss(bench.sequence, Outcome.MISSED))
        deadlines.append(bench.machine.hint().deadline_max_s)
    assert deadlines == [0.3, 0.3, 0.5, 0.3] * 2


def test_a_miss_that_comes_after_a_later_call_was_answered_says_nothing_of_the_link() -> None:
    bench = Bench().nominal()
    bench.step(bench.asked(within=0.1))
    late = bench.miss()
    bench.step()
    bench.step(bench.reply(age=0.05))
    bench.step(late)
    assert bench.step(bench.reply(age=0.05)).state is State.NOMINAL, "two answers in a row"


def test_a_chunk_is_not_played_on_when_the_answers_that_prove_the_link_are_too_early_to_be_adopted() -> None:
    bench = Bench(chunk_length=8, dt=0.02)
    bench.step(bench.reply(actions=(ACTION,) * 8))
    bench.step(bench.reply(actions=()))
    assert bench.machine.state is State.HOLD
    began = bench.now
    for _ in range(3):
        command = bench.step(bench.reply(captured_at=began, actions=(ACTION,) * 8))
        assert not command.motion


def test_a_frame_older_than_its_predecessor_is_invalid() -> None:
    bench = Bench().nominal()
    captured_at = bench.now - 0.15
    assert bench.step(bench.reply(captured_at=captured_at)).cause == Event.INVALID.value


def test_nothing_is_asked_of_the_server_in_a_safe_stop() -> None:
    bench = Bench().nominal()
    assert bench.machine.hint().enabled
    bench.step(estop=True)
    assert not bench.machine.hint().enabled
