"""What must hold on every tick of every history of the fallback machine; numbers are those of docs/fallback.md."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from splitvla_edge.fallback import TRANSITIONS, Chunk, Command, Hint, State, TickInputs
from splitvla_edge.fallback.machine import FallbackMachine
from splitvla_edge.robots.action_space import Kind

_EPSILON = 1e-6


@dataclass(slots=True)
class Watch:
    """Sees every tick of one machine and raises AssertionError. Mutable state: what it needs of the past."""

    machine: FallbackMachine
    ticks: int = 0
    gripper: float | None = None
    gripper_commanded: bool = False
    last_sequence: int = 0
    last_epoch: int = 1
    settled_at: float = -math.inf
    box: tuple[tuple[float, ...], float] | None = None
    set_point: tuple[float, ...] | None = None
    away_since: float = math.inf
    executed: set[tuple[int, int]] = field(default_factory=set)
    epochs: dict[int, set[int]] = field(default_factory=dict)
    rung_changed_at: float = -math.inf
    rung: int = 0
    history: list[tuple[float, TickInputs, Command, Hint]] = field(default_factory=list)

    def tick(self, now: float, inputs: TickInputs) -> Command:
        before = self.machine.state
        command = self.machine.tick(now, inputs)
        self.ticks += 1
        self._see_robot(now, inputs)
        for reply in inputs.replies:
            if isinstance(reply, Chunk):
                self.epochs.setdefault(reply.sequence, set()).add(reply.epoch)
        taken = inputs.estop or not inputs.robot_ready or not inputs.enabled
        self._see_gripper(inputs, taken)
        self._check_numbers(command)
        if self.machine.space.kind is Kind.ABSOLUTE:
            self._check_set_point(now, inputs, command, taken)
        self._check_states(now, inputs, before, command)
        if command.motion and command.state is not State.LOCAL:
            self._check_remote(now, command)
        if taken or (command.state in (State.HOLD, State.INIT) and (before is not command.state or inputs.reset)):
            self.settled_at = now + self.machine.settings.settle_ms / 1e3
        self._check_rung(now)
        self.history.append((now, inputs, command, self.machine.hint()))
        return command

    def replay(self, machine: FallbackMachine) -> None:
        """16: the log of the inputs is the log of the commands, and of the hints."""
        for now, inputs, command, hint in self.history:
            assert machine.tick(now, inputs) == command
            assert machine.hint() == hint

    def _see_robot(self, now: float, inputs: TickInputs) -> None:
        position, tolerance = inputs.position, self.machine.settings.still_tolerance
        if position is None:
            self.box = None
        elif self.box is None or max(abs(a - b) for a, b in zip(position, self.box[0], strict=True)) > tolerance:
            self.box = (position, now)

    def _see_gripper(self, inputs: TickInputs, taken: bool) -> None:
        if inputs.gripper is not None and math.isfinite(inputs.gripper) and not self.gripper_commanded:
            self.gripper = inputs.gripper
        elif not taken and self.gripper is None:
            self.gripper = self.machine.space.gripper_start

    def _check_numbers(self, command: Command) -> None:
        space = self.machine.space
        unknown = space.gripper is not None and self.gripper is None
        assert command.tick == self.ticks  # 1
        if command.values or not (space.kind is Kind.ABSOLUTE or unknown):
            assert len(command.values) == space.dims
        assert not (command.values and unknown)  # 7
        assert all(map(math.isfinite, command.values))  # 2
        assert command.values == (space.bounded(command.values) if command.values else ())  # 2
        if command.motion and space.gripper is not None:
            self.gripper, self.gripper_commanded = command.values[space.gripper], True
        elif command.values and space.gripper is not None:
            assert command.values[space.gripper] == self.gripper  # 7
        if command.values and not command.motion and space.kind in (Kind.DELTA_EE, Kind.DELTA_JOINT):
            assert all(v == 0.0 for i, v in enumerate(command.values) if i != space.gripper)  # 7

    def _check_set_point(self, now: float, inputs: TickInputs, command: Command, taken: bool) -> None:
        """18: it stands or moves by a tick's travel, from the last one or from where the arm was left meanwhile."""
        self.away_since = min(self.away_since, now) if taken else math.inf
        away = now - self.away_since >= self.machine.settings.ready_clear_ms / 1e3
        if inputs.estop or not inputs.enabled or away or inputs.reset:
            self.set_point = None
        if not command.values:
            return
        space = self.machine.space
        slack = [1e-3 * (high - low) for low, high in zip(space.low, space.high, strict=True)]
        travel = self.machine.limits if command.motion else slack
        starts = [each for each in (self.set_point, inputs.position) if each is not None]
        assert any(
            all(
                abs(value - start) <= most + _EPSILON
                for index, (value, start, most) in enumerate(zip(command.values, begin, travel, strict=True))
                if index != space.gripper
            )
            for begin in starts
        )
        self.set_point = command.values

    def _check_states(self, now: float, inputs: TickInputs, before: State, command: Command) -> None:
        if command.state in (State.HOLD, State.SAFE_STOP, State.INIT, State.WAIT):
            assert not command.motion  # 7
        if inputs.estop:
            assert (command.state, command.stop) == (State.SAFE_STOP, True)  # 9
        if before is State.SAFE_STOP and (inputs.estop or not inputs.reset):
            assert command.state is State.SAFE_STOP  # 10
        stale_s = self.machine.settings.camera_stale_ms / 1e3 + _EPSILON
        if inputs.frame_at is None or not 0.0 <= now - inputs.frame_at <= stale_s:
            assert not command.motion  # 11
        if command.state is not before:
            causes = {t.cause for (state, _), t in TRANSITIONS.items() if (state, t.to) == (before, command.state)}
            assert command.cause in causes  # 16
        if command.state is State.LOCAL and before is not State.LOCAL:
            assert before is State.HOLD
            assert self.box is not None  # 17
            assert now - self.box[1] >= self.machine.settings.still_ms / 1e3 - _EPSILON  # 17
        assert command.epoch >= self.last_epoch
        self.last_epoch = command.epoch

    def _check_remote(self, now: float, command: Command) -> None:
        assert command.sequence is not None
        assert command.index is not None
        assert command.age_s is not None
        chunk = self.machine.account.chunk
        assert chunk is not None
        assert command.age_s <= self.machine.settings.max_age_s(self.machine.dt_s, len(chunk.actions)) + _EPSILON  # 3
        assert (command.sequence, command.index) not in self.executed  # 4
        assert command.sequence >= self.last_sequence  # 5
        assert now - command.age_s >= self.settled_at - _EPSILON  # 6
        assert command.epoch in self.epochs[command.sequence]  # 12
        self.executed.add((command.sequence, command.index))
        self.last_sequence = command.sequence

    def _check_rung(self, now: float) -> None:
        rung = self.machine.chooser.rung
        if rung != self.rung:
            assert now - self.rung_changed_at >= 1.0 - _EPSILON  # 14
            self.rung, self.rung_changed_at = rung, now
