"""The local policy: when it may act, how fast, and how control goes back to the server."""

from __future__ import annotations

import math
from typing import Any

import pytest

from splitvla_edge.fallback import Command, Event, FallbackSettings, Mode, State
from tests.machine_bench import ACTION, Bench, still


def held(**changes: Any) -> Bench:
    """In HOLD for just less than half a second, with a local policy that answers every tick."""
    bench = Bench(dt=0.05).nominal()
    bench.step(bench.miss(), local=bench.local())
    for _ in range(9):
        step(bench, **changes)
    assert bench.machine.state is State.HOLD
    return bench


def step(bench: Bench, *replies: Any, **changes: Any) -> Command:
    return bench.step(*replies, **{"local": bench.local(), **changes})


def on_local() -> Bench:
    bench = held()
    assert step(bench).state is State.LOCAL
    return bench


def test_after_half_a_second_of_hold_the_local_policy_acts_slowly() -> None:
    bench = held()
    commands = [step(bench) for _ in range(4)]
    assert [command.state for command in commands] == [State.LOCAL] * 4
    last = commands[-1]
    assert (last.motion, last.sequence) == (True, None)
    assert max(abs(value) for value in last.values[:2]) <= 0.25 * 1.0
    fast = step(bench, local=bench.local(actions=((0.5, -1.0, 1.0),)))
    assert fast.values == pytest.approx((0.125, -0.25, 1.0)), "capped as a whole: the direction stays"


@pytest.mark.parametrize(
    "changes",
    [
        {"local": None},
        {"position": None},
        {"position": (math.nan, 0.0, 0.0)},
    ],
)
def test_without_a_local_policy_or_a_measured_pose_the_robot_goes_on_holding(changes: dict[str, Any]) -> None:
    bench = held(**changes)
    assert {step(bench, **changes).state for _ in range(10)} == {State.HOLD}


@pytest.mark.parametrize(
    "changes",
    [
        {"agreement": 0.79},
        {"samples": 19},
        {"captured_at": 0.0},
        {"captured_at": 1e9},
        {"actions": ((math.nan, 0.0, 0.0),)},
        {"actions": ((0.1, 0.0),)},
        {"actions": ()},
    ],
)
def test_a_local_answer_that_is_unlicensed_old_or_malformed_never_moves_the_robot(changes: dict[str, Any]) -> None:
    bench = held()
    assert {step(bench, local=bench.local(**changes)).state for _ in range(10)} == {State.HOLD}


def test_the_local_policy_never_starts_while_the_robot_is_measured_to_move() -> None:
    bench = held()
    for number in range(1, 11):
        command = step(bench, position=(0.006 * number, 0.0, 0.0))
        assert command.state is State.HOLD
    states = [step(bench, position=(0.1, 0.0, 0.0)).state for _ in range(6)]
    assert states == [State.HOLD] * 4 + [State.LOCAL] * 2, "0.2 s after the last movement"


def test_a_local_answer_is_executed_once_and_the_robot_holds_between_two() -> None:
    bench = on_local()
    again = bench.local()
    moved, waited = step(bench, local=again), step(bench, local=again)
    assert (moved.motion, waited.motion) == (True, False)
    assert waited.state is State.LOCAL
    assert still(waited, ACTION[2])


def test_a_local_policy_that_falls_silent_or_a_stale_camera_means_hold() -> None:
    bench = on_local()
    states = [step(bench, local=None).state for _ in range(8)]
    assert (states[0], states[-1]) == (State.LOCAL, State.HOLD)
    assert step(on_local(), frame_at=None).state is State.HOLD


def test_the_server_takes_over_again_through_a_hold_on_a_frame_from_after_it() -> None:
    bench = on_local()
    assert step(bench, bench.reply(age=0.02)).state is State.LOCAL, "one answer proves nothing"
    command = step(bench, bench.reply(age=0.02))
    assert (command.state, command.cause, command.motion) == (State.HOLD, Event.RELIEVED.value, False)
    states = [step(bench, bench.reply(age=0.02)).state for _ in range(4)]
    assert states == [State.HOLD] * 2 + [State.NOMINAL] * 2, "the link is proven: only the settling is waited for"


def test_an_invalid_answer_of_the_server_stops_the_local_policy_too() -> None:
    bench = on_local()
    nan = ((math.nan, 0.0, 0.0),)
    assert step(bench, bench.reply(actions=nan)).state is State.HOLD


def test_thirty_seconds_on_the_local_policy_stop_the_robot() -> None:
    bench = on_local()
    states = [step(bench).state for _ in range(620)]
    assert states[590] is State.LOCAL
    assert states[-1] is State.SAFE_STOP
    assert bench.machine.cause == Event.LOCAL_TIMEOUT.value


def test_forced_local_uses_no_server_and_needs_no_licence() -> None:
    bench = Bench(dt=0.05, mode=Mode.FORCED_LOCAL)
    commands = [step(bench, bench.reply(), local=bench.local(samples=0, agreement=0.0)) for _ in range(16)]
    assert [command.state for command in commands] == [State.HOLD] * 10 + [State.LOCAL] * 6
    assert all(command.sequence is None for command in commands)
    hint = bench.machine.hint()
    assert (hint.enabled, hint.local) == (False, True)


def test_the_local_policy_is_wanted_on_every_frame_only_while_the_server_is_not_trusted() -> None:
    bench = Bench(dt=0.05).nominal()
    assert not bench.machine.hint().local
    bench.step(bench.miss())
    assert bench.machine.hint().local


def test_time_on_the_local_policy_comes_back_slowly() -> None:
    settings = FallbackSettings(local_to_stop_s=1.0)
    bench = Bench(dt=0.05, settings=settings).nominal()
    for _ in range(3):
        bench.step(bench.miss(), local=bench.local())
        for _ in range(18):
            step(bench)
        for _ in range(8):
            step(bench, bench.reply(age=0.02))
    assert bench.machine.cause == Event.LOCAL_TIMEOUT.value


def test_a_local_answer_from_before_the_robot_had_settled_is_not_used() -> None:
    bench = Bench(dt=0.05, settings=FallbackSettings(local_after_s=0.0)).nominal()
    bench.step(bench.miss())
    for _ in range(4):
        assert step(bench, local=bench.local(captured_at=bench.now - 0.15)).state is State.HOLD
