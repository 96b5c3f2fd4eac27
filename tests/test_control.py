"""The control loop: one command a tick, on schedule, whatever perception and the robot do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from splitvla_edge.daemon.channel import Contract, Exhausted, FrameSeen
from splitvla_edge.daemon.control import ControlLoop
from splitvla_edge.fallback import Asked, Command, Event, Hint, LocalChunk, Miss, Outcome, Ready, State, TickInputs
from splitvla_edge.robots.base import RobotState
from splitvla_edge.robots.shadow import ShadowRobot
from splitvla_edge.robots.simulator.memory import FrameMemory
from splitvla_edge.robots.simulator.messages import Act, Status
from splitvla_edge.robots.simulator.robot import SimulatedRobot
from splitvla_edge.robots.simulator.world import SimulatorSettings
from tests.control_rig import DT, SPACE, Rig
from tests.sim_fakes import FakeProcess


def test_a_tick_reads_the_robot_applies_one_command_and_records_it() -> None:
    rig = Rig()
    rig.now += DT
    rig.peer.inbox = [*rig.frame(), rig.chunk(7)]
    command = rig.loop.tick(rig.now, lateness_s=0.002)
    assert rig.robot.calls == ["read_state", "apply"]
    assert (command.state, command.values) == (State.NOMINAL, (0.5 * (DT / 0.15), 1.0)), "blended in"
    record = rig.records[0]
    assert (record.tick, record.state, record.sequence, record.command) == (1, "NOMINAL", 7, command.values)
    assert (record.wire_bytes, record.gripper, record.lateness_ms) == (99, 1.0, 2.0)
    assert record.age_ms == pytest.approx(50.0)
    assert record.stages is not None


def test_a_clipped_answer_is_recorded_and_does_not_move_the_robot() -> None:
    rig = Rig()
    rig.tick()
    command = rig.tick(replace(rig.chunk(1), clipped=1))
    assert not command.motion
    assert rig.records[-1].clipped == 1


def test_every_tick_tells_perception_the_epoch_the_floor_and_the_deadline() -> None:
    rig = Rig()
    rig.tick(Miss(12, Outcome.MISSED, "late"))
    assert rig.peer.sent == [Hint(1, 12, 0.3, 0.1, 0.5, True)]
    assert (rig.records[0].miss, rig.records[0].detail) == ("MISSED", "late")


def test_the_schedule_does_not_drift_and_missed_slots_are_left_out() -> None:
    rig = Rig()
    begun: list[float] = []
    costs = iter([0.03, 0.25, 0.03, 0.03])

    def take_time(_: RobotState) -> RobotState:
        begun.append(round(rig.now - 50.0, 6))
        rig.now += next(costs, 0.0)
        return _

    state = rig.robot.state
    rig.robot.read_state = lambda: take_time(state)  # type: ignore[method-assign]
    rig.loop.run(duration_s=0.75)
    assert begun == [0.0, 0.1, 0.4, 0.5, 0.6, 0.7]


def test_a_tick_that_begins_three_periods_late_stops_a_robot_that_moves() -> None:
    rig = Rig()
    rig.tick(rig.chunk(1))
    rig.now += DT
    rig.peer.inbox = rig.frame()
    command = rig.loop.tick(rig.now, lateness_s=0.31)
    assert (command.state, rig.robot.calls[-1]) == (State.SAFE_STOP, "stop")


@pytest.mark.parametrize("blocks", ["read_state", "apply"])
def test_a_driver_that_keeps_a_tick_for_more_than_three_periods_stops_a_robot_that_moves(blocks: str) -> None:
    rig = Rig()
    costs = iter([0.0, 0.45])
    call = getattr(rig.robot, blocks)

    def take_time(*arguments: Any) -> Any:
        rig.now += next(costs, 0.0)
        return call(*arguments)

    setattr(rig.robot, blocks, take_time)
    sequences = iter(range(1, 99))
    rig.peer.receive = lambda: [*rig.frame(), rig.chunk(next(sequences))]  # type: ignore[method-assign]
    rig.loop.run(duration_s=0.65)
    assert [record.state for record in rig.records] == ["NOMINAL", "NOMINAL", "SAFE_STOP"]
    assert rig.records[-1].cause == Event.OVERRUN.value
    assert rig.records[-1].lateness_ms == pytest.approx(400.0), "since the slot after the last tick, not since its own"


def test_an_action_that_grows_too_old_while_the_robot_is_read_is_not_executed() -> None:
    rig = Rig()
    rig.tick(rig.chunk(1))

    def take_time() -> RobotState:
        rig.now += 0.2
        return rig.robot.state

    rig.robot.read_state = take_time  # type: ignore[method-assign]
    command = rig.tick(rig.chunk(2))
    assert (command.state, command.motion) == (State.HOLD, False)
    assert rig.records[-1].t == pytest.approx(rig.now - 50.0), "the moment that the machine decided on"


def test_a_reply_that_comes_while_the_robot_is_read_is_taken_in_the_same_tick() -> None:
    rig = Rig()
    rig.tick()

    def take_time() -> RobotState:
        rig.now += 0.05
        rig.peer.inbox.append(rig.chunk(1))
        return rig.robot.state

    rig.robot.read_state = take_time  # type: ignore[method-assign]
    assert rig.tick().sequence == 1


def test_the_driver_s_stop_is_requested_once_and_again_until_it_succeeds() -> None:
    rig = Rig()
    rig.robot.fails = {"stop"}
    rig.robot.state = RobotState(estop=True)
    rig.tick()
    rig.robot.fails = set()
    rig.tick()
    rig.tick()
    assert rig.robot.calls.count("stop") == 2


def test_the_driver_s_stop_is_requested_anew_when_the_robot_was_reset_in_between() -> None:
    rig = Rig()
    for stops in (1, 2):
        rig.robot.state = RobotState(estop=True)
        assert rig.tick().stop
        assert rig.robot.calls.count("stop") == stops
        rig.robot.state = RobotState()
        rig.loop.requests.reset = True
        assert not rig.tick().stop


def test_the_driver_s_stop_is_requested_although_apply_fails_and_both_faults_are_told() -> None:
    rig = Rig()
    rig.robot.state = RobotState(estop=True)
    rig.robot.fails = {"apply", "stop"}
    rig.tick()
    assert rig.robot.calls[-2:] == ["apply", "stop"]
    assert "apply: the arm" in rig.records[-1].detail
    assert "stop: the arm" in rig.records[-1].detail
    rig.robot.fails = {"apply"}
    rig.tick()
    rig.tick()
    assert rig.robot.calls.count("stop") == 2, "taken the second time, and not asked for again"


def test_a_contract_violation_stands_until_perception_is_ready_again() -> None:
    rig = Rig()
    rig.peer.inbox = [Contract("embed_dim: 4096 here, 896 there")]
    assert rig.loop.tick(rig.now).state is State.SAFE_STOP
    assert rig.records[0].detail == "embed_dim: 4096 here, 896 there"
    rig.loop.requests.reset = True
    assert rig.loop.tick(rig.now + DT).state is State.SAFE_STOP, "a reset does not mend it"
    rig.loop.requests.reset = True
    assert rig.tick().state is State.INIT
    assert rig.machine.epoch == 2


@pytest.mark.parametrize("fails", ["read_state", "apply"])
def test_a_robot_that_fails_means_hold_and_never_ends_the_loop(fails: str) -> None:
    rig = Rig()
    rig.tick(rig.chunk(1))
    rig.robot.fails = {fails}
    rig.tick(rig.chunk(2))
    command = rig.tick(rig.chunk(3))
    assert command.state is State.HOLD
    assert "cable" in rig.records[-1].detail
    assert rig.records[-1].fault == rig.records[-1].detail
    assert len(rig.robot.commands) == 3
    rig.robot.fails = set()
    rig.tick()
    assert rig.records[-1].fault == "", "one that is over is not told for ever"


def test_who_is_not_ready_is_told() -> None:
    """Or a model that takes long to load would look like a camera that is stale."""
    rig = Rig()
    rig.loop.tick(rig.now)
    rig.robot.state = RobotState(ready=False)
    rig.tick()
    rig.robot.state = RobotState()
    rig.tick()
    assert [record.detail for record in rig.records] == [
        "perception has not said that it is ready",
        "the robot is not ready",
        "",
    ]
    assert {record.fault for record in rig.records} == {""}


def test_an_e_stop_of_the_robot_acts_in_the_same_tick() -> None:
    rig = Rig()
    rig.tick(rig.chunk(1))
    rig.robot.state = RobotState(estop=True)
    assert rig.tick(rig.chunk(2)).state is State.SAFE_STOP


def test_a_robot_that_its_operator_disarms_waits_in_init_and_arms_again_without_a_reset() -> None:
    rig = Rig()
    rig.tick(rig.chunk(1))
    rig.robot.state = RobotState(enabled=False)
    command = rig.tick(rig.chunk(2))
    assert (command.state, command.cause, command.motion) == (State.INIT, Event.DISARMED.value, False)
    rig.robot.state = RobotState()
    states = [rig.tick(rig.chunk(number)).state for number in (3, 4, 5)]
    assert states == [State.INIT, State.INIT, State.NOMINAL], "a frame from after it was armed is waited for"


@pytest.mark.parametrize("held", [False, True])
def test_no_answer_to_an_old_episode_s_picture_moves_the_arm_in_the_new_one(held: bool) -> None:
    rig, process, memory = Rig(), FakeProcess(), FrameMemory.create()
    robot = SimulatedRobot(SPACE, SimulatorSettings(), DT, process, memory, clock=lambda: rig.now)
    rig.loop = ControlLoop(rig.machine, robot, rig.peer, rig.records.append, clock=lambda: rig.now, sleep=rig.sleep)
    process.says = [Status(0, 0)]
    rig.tick(*([rig.chunk(1)] if held else []))
    for number in range(5 if held else 1):  # a hold that has settled, on a link that has proven itself by its end
        rig.tick(*([Miss(2, Outcome.MISSED)] if number == 0 else [rig.chunk(3)] if number == 4 else []))
    assert rig.machine.state is (State.HOLD if held else State.INIT)
    picture_at = rig.now
    process.says = [Status(1, 0)]
    rig.tick()
    old = [rig.tick(replace(rig.chunk(number), captured_at=picture_at + number * 1e-3)) for number in (4, 5)]
    assert not any(command.motion for command in old)
    assert any(rig.tick(rig.chunk(number)).motion for number in (6, 7))
    assert isinstance(act := process.told[-1], Act)
    assert (act.episode, act.motion) == (1, True)
    memory.close()


def test_the_black_box_and_the_machine_see_all_that_a_tick_was_given() -> None:
    rig = Rig()
    seen: list[object] = []

    class Box:
        def before(self, now: float) -> None:
            seen.append(rig.machine.state)

        def after(self, now: float, inputs: TickInputs, command: Command) -> None:
            seen.extend((now, inputs, command))

    rig.loop = ControlLoop(rig.machine, rig.robot, rig.peer, rig.records.append, recorder=Box(), clock=lambda: rig.now)
    local = LocalChunk(1, rig.now, ((0.1, 1.0),), 0.9, 50)
    command = rig.tick(rig.chunk(1), local)
    assert command.state is State.NOMINAL
    state, now, inputs, told = seen
    assert (state, now, told) == (State.INIT, rig.now, command)
    assert isinstance(inputs, TickInputs)
    assert (inputs.local, [reply.sequence for reply in inputs.replies]) == (local, [1])


def test_a_slot_that_begins_while_the_pause_is_reckoned_ends_no_run() -> None:
    """time.sleep refuses a negative pause."""
    rig = Rig()

    def run_on() -> float:
        rig.now += 1.5 * DT
        return rig.now

    rig.loop = ControlLoop(rig.machine, rig.robot, rig.peer, rig.records.append, clock=run_on, sleep=rig.sleep)
    rig.loop.run(duration_s=20 * DT)
    assert rig.slept
    assert min(rig.slept) == 0.0


def test_a_perception_process_that_was_started_again_must_say_ready_again() -> None:
    rig = Rig()
    rig.tick(rig.chunk(1))
    rig.peer.generation = 2
    rig.now += DT
    rig.peer.inbox = [FrameSeen(rig.now, 2), rig.chunk(2)]
    assert rig.loop.tick(rig.now).state is State.HOLD


def test_the_loop_ends_with_the_camera_after_the_last_action_and_stops_the_robot() -> None:
    rig = Rig()
    rig.peer.inbox = [*rig.frame(), rig.chunk(1), Exhausted()]
    assert rig.loop.run() is State.NOMINAL
    assert rig.robot.calls == ["read_state", "apply", "stop"]


@pytest.mark.parametrize("call", ["read_state", "apply", "stop"])
def test_a_call_of_the_robot_that_lasts_for_seconds_is_seen_from_outside(call: str) -> None:
    rig = Rig()
    seen: list[bool] = []

    def take_time(name: str) -> None:
        rig.sleep(3.0 if name == call else 0.01)
        seen.append(rig.loop.stuck_since() is not None)

    rig.robot.takes_time = take_time
    rig.loop.run(duration_s=0.05)
    assert seen[rig.robot.calls.index(call)]
    assert (seen[0], rig.loop.stuck_since()) == (call == "read_state", None)


def test_the_loop_ends_when_it_is_asked_to() -> None:
    rig = Rig()
    rig.loop.requests.stop = True
    assert rig.loop.run() is State.INIT
    assert rig.robot.calls == ["stop"]


def test_the_control_process_loads_no_model_codec_network_or_drawing() -> None:
    """In a fresh interpreter, and for the daemon's whole import closure."""
    banned = ["onnxruntime", "grpc", "cv2", "PIL", "splitvla_shared.codec", "google.protobuf", "rich", "torch"]
    code = (
        "import sys, splitvla_edge.daemon.control, splitvla_edge.daemon.run, splitvla_edge.robots\n"
        f"print([name for name in {banned} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


def test_in_shadow_the_robot_is_read_and_never_commanded() -> None:
    rig = Rig()
    rig.robot.state = RobotState(estop=True)
    shadow = ShadowRobot(rig.robot)
    loop = ControlLoop(rig.machine, shadow, rig.peer, rig.records.append, clock=lambda: rig.now, sleep=rig.sleep)
    rig.peer.inbox = [*rig.frame(), rig.chunk(1)]
    assert loop.tick(rig.now).state is State.SAFE_STOP
    loop.requests.stop = True
    loop.run()
    assert rig.robot.calls == ["read_state"]
    assert rig.records[0].state == "SAFE_STOP"


def _ticks(rig: Rig, seconds: float) -> None:
    for _ in range(round(seconds / DT)):
        rig.tick()


def test_a_call_that_never_ends_has_perception_replaced_once_and_any_end_of_it_counts() -> None:
    rig = Rig()
    for end in (rig.chunk(1), Miss(2, Outcome.MISSED, "late"), None):
        rig.tick(Asked(1, 1, rig.now, rig.now + 0.3))
        _ticks(rig, 9.0)
        if end is not None:
            rig.tick(end)
        rig.tick(Miss(0, Outcome.FAULT, "camera"))  # of no call
        assert rig.peer.replaced == []
        _ticks(rig, 2.0)
    assert rig.peer.replaced == ["hung: a call has not ended in 10 s; it was killed"]
    _ticks(rig, 20.0)
    assert len(rig.peer.replaced) == 1


def test_who_stalled_itself_does_not_take_perception_for_hung() -> None:
    """The end of the call may be among the messages that had no room in the socket."""
    rig = Rig()
    rig.tick(Asked(1, 1, rig.now, rig.now + 0.3))
    rig.now += 15.0
    rig.loop.tick(rig.now, lateness_s=15.0)
    assert rig.peer.replaced == []


def test_a_model_of_other_dimensions_than_the_robot_s_is_told_with_both_numbers() -> None:
    rig = Rig()
    rig.peer.inbox = [Ready(7, 1, "0" * 16)]
    command = rig.loop.tick(rig.now)
    assert command.state is State.SAFE_STOP
    assert rig.records[-1].detail == "the model gives 7 numbers an action, the robot takes 2"


def test_another_process_owes_nothing_of_the_last_one_s_call() -> None:
    rig = Rig()
    rig.tick(Asked(1, 1, rig.now, rig.now + 0.3))
    rig.peer.generation += 1
    _ticks(rig, 20.0)
    assert rig.peer.replaced == []
