"""The control loop: on every tick read the robot, receive, tick the machine, apply one command, emit one record.

Rules of this file: no model, no codec, no network, no rendering; nothing here waits but for the next tick. The
schedule is absolute, so that a late tick delays no other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from splitvla_edge.daemon.channel import Contract, Exhausted, FrameSeen, Message
from splitvla_edge.daemon.record import StepRecord
from splitvla_edge.fallback import Asked, Chunk, Command, LocalChunk, Miss, Ready, Reply, State, TickInputs
from splitvla_edge.fallback.machine import FallbackMachine
from splitvla_edge.robots.base import Robot, RobotState
from splitvla_shared.errors import RobotError

STUCK_S = 2.0  # a call of the robot that lasts this long may never return
_STALLED_S = 1.0  # after so long the end of a call may be among the messages that had no room in the socket


class Peer(Protocol):
    """The perception process as the control loop sees it. No call waits or raises."""

    @property
    def generation(self) -> int:
        """Rises with every start of the process."""

    @property
    def up(self) -> bool: ...

    def receive(self) -> list[Message]: ...

    def send(self, message: Message) -> None: ...

    def replace(self, why: str) -> None:
        """Kill the process and have another take its place."""


class Recorder(Protocol):
    """The black box as the control loop sees it. No call waits or raises."""

    def before(self, now: float) -> None: ...

    def after(self, now: float, inputs: TickInputs, command: Command) -> None: ...


@dataclass(slots=True)
class Requests:
    """What signal handlers ask of the loop: plain flags, because a handler must not take a lock."""

    stop: bool = False
    reset: bool = False


class ControlLoop:
    """Owned by the control process's main thread. Mutable state: what perception last said, and the robot's faults."""

    def __init__(
        self,
        machine: FallbackMachine,
        robot: Robot,
        peer: Peer,
        emit: Callable[[StepRecord], None],
        *,
        recorder: Recorder | None = None,
        hang_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """hang_s: a call of perception that takes longer than this never ends; another process takes its place."""
        self.requests = Requests()
        self.exhausted = False
        self.frames_seen = 0
        self.stop_fault = ""  # why the robot did not take the stop at the end of the run
        self.busy_since: float | None = None  # when the tick or the stop began that has not ended yet
        self._machine, self._robot, self._peer, self._emit = machine, robot, peer, emit
        self._recorder, self._hang_s, self._clock, self._sleep = recorder, hang_s, clock, sleep
        self._started = clock()
        self._generation = -1
        self._ready: Ready | None = None
        self._local: LocalChunk | None = None
        self._frame_at: float | None = None
        self._calling_since: float | None = None
        self._contract = ""
        self._read_fault = self._apply_fault = ""
        self._stopped = False

    def run(self, duration_s: float | None = None) -> State:
        """Tick until asked to stop, the camera is exhausted, or `duration_s` is over; then stop the robot.

        Returns the machine's last state.
        """
        self._started = start = self._clock()
        dt_s, slot, due = self._machine.dt_s, 0, 0
        try:
            while not (self.requests.stop or self.exhausted):
                now = self._clock()
                if duration_s is not None and now - start >= duration_s:
                    break
                self.busy_since = now
                self.tick(now, lateness_s=max(0.0, now - (start + due * dt_s)))
                self.busy_since = None
                # After an overrun the missed slots are left out: two commands in a burst are worse than one late. The
                # next tick is late from the first of them on, or nothing would show that a driver kept this one.
                due = slot + 1
                slot = max(due, math.ceil((self._clock() - start) / dt_s))
                self._sleep(max(0.0, start + slot * dt_s - self._clock()))
        finally:
            self._stop_robot()
        return self._machine.state

    def stuck_since(self) -> float | None:
        """When the call of the robot began that may never return; None while none does. For any thread."""
        since = self.busy_since
        return since if since is not None and self._clock() - since > STUCK_S else None

    def tick(self, now: float, lateness_s: float = 0.0) -> Command:
        """One tick, in the order that the first lines of this file give. now: when it began."""
        state = self._read_robot()
        replies = self._receive()
        now = max(now, self._clock())  # a driver may take its time, in which actions grow older
        self._watch_calls(now, replies, lateness_s)
        inputs = self._inputs(replies, state, lateness_s)
        if self._recorder is not None:
            self._recorder.before(now)
        command = self._machine.tick(now, inputs)
        self._apply(command)
        self._peer.send(self._machine.hint())
        if self._recorder is not None:
            self._recorder.after(now, inputs, command)
        self._emit(self._record(now, command, replies, inputs))
        return command

    def _receive(self) -> tuple[Reply, ...]:
        if self._peer.generation != self._generation:
            self._generation, self._ready, self._local = self._peer.generation, None, None
            self._calling_since = None
        replies: list[Reply] = []
        for message in self._peer.receive():
            if isinstance(message, Asked | Chunk | Miss):
                replies.append(message)
            elif isinstance(message, LocalChunk):
                self._local = message
            elif isinstance(message, FrameSeen):
                self._frame_at, self.frames_seen = message.captured_at, message.index + 1
            elif isinstance(message, Ready):
                self._ready, self._contract = message, self._broken_by(message)
            elif isinstance(message, Contract):
                self._contract = message.text
            elif isinstance(message, Exhausted):
                self.exhausted = True
        return tuple(replies)

    def _broken_by(self, ready: Ready) -> str:
        """What of the contract; empty when the model gives what the robot takes."""
        takes = self._machine.space.dims
        return "" if ready.dims == takes else f"the model gives {ready.dims} numbers an action, the robot takes {takes}"

    def _watch_calls(self, now: float, replies: tuple[Reply, ...], lateness_s: float) -> None:
        """A process that hangs in a call is alive, holds the robot, and no reset would help."""
        if lateness_s > _STALLED_S:
            self._calling_since = None
        for reply in replies:
            if isinstance(reply, Asked):
                self._calling_since = now
            elif reply.sequence:  # a fault of the camera or of the handshake is no call's end
                self._calling_since = None
        if self._calling_since is not None and now - self._calling_since > self._hang_s:
            self._peer.replace(f"hung: a call has not ended in {self._hang_s:g} s; it was killed")
            self._calling_since = None

    def _read_robot(self) -> RobotState:
        self._read_fault = ""
        try:
            return self._robot.read_state()
        except RobotError as error:
            self._read_fault = str(error)
            return RobotState(ready=False)

    def _inputs(self, replies: tuple[Reply, ...], state: RobotState, lateness_s: float) -> TickInputs:
        reset, self.requests.reset = self.requests.reset, False
        return TickInputs(
            replies=replies,
            local=self._local,
            frame_at=self._frame_at,
            ready=self._ready,
            enabled=state.enabled,
            robot_ready=state.ready and not self._apply_fault,
            estop=state.estop,
            contract=self._contract,
            reset=reset,
            lateness_s=lateness_s,
            gripper=state.gripper,
            position=state.position,
        )

    def _apply(self, command: Command) -> None:
        """A fault is seen by the next tick, which holds and tries again; it never keeps the driver from its stop."""
        faults = _fault_of(lambda: self._robot.apply(command))
        if command.stop and not self._stopped:
            stop_faults = _fault_of(self._robot.stop)
            self._stopped = not stop_faults
            faults += stop_faults
        elif not command.stop:
            self._stopped = False
        self._apply_fault = "; ".join(faults)

    def _record(self, now: float, command: Command, replies: tuple[Reply, ...], inputs: TickInputs) -> StepRecord:
        chunk = next((reply for reply in reversed(replies) if isinstance(reply, Chunk)), None)
        miss = next((reply for reply in reversed(replies) if isinstance(reply, Miss)), None)
        gripper = self._robot.action_space.gripper
        fault = self._read_fault or self._apply_fault
        detail = self._contract or fault or ("" if miss is None else miss.text)
        if not detail and miss is None:
            detail = _waits_for(inputs)
        return StepRecord(
            tick=command.tick,
            t=now - self._started,
            state=command.state.value,
            cause=command.cause,
            epoch=command.epoch,
            command=command.values,
            sequence=command.sequence,
            age_ms=None if command.age_s is None else command.age_s * 1e3,
            gripper=command.values[gripper] if gripper is not None and command.values else None,
            stages=None if chunk is None else chunk.stages,
            wire_bytes=None if chunk is None else chunk.wire_bytes,
            clipped=0 if chunk is None else chunk.clipped,
            miss="" if miss is None else miss.outcome.name,
            detail=detail,
            fault=fault,
            lateness_ms=inputs.lateness_s * 1e3,
            perception_up=self._peer.up,
            rung=self._machine.chooser.rung,
            horizon_ms=self._machine.horizon_s(now) * 1e3,
        )

    def _stop_robot(self) -> None:
        self.busy_since = self._clock()
        try:
            self.stop_fault = "; ".join(_fault_of(self._robot.stop))
        finally:
            self.busy_since = None


def _waits_for(inputs: TickInputs) -> str:
    """Who is not ready, in words."""
    if not inputs.robot_ready:
        return "the robot is not ready"
    return "perception has not said that it is ready" if inputs.ready is None else ""


def _fault_of(call: Callable[[], None]) -> list[str]:
    """What a call of the driver raises, in words; empty when it does not."""
    try:
        call()
    except RobotError as error:
        return [str(error)]
    return []
