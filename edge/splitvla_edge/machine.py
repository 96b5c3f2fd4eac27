"""The fallback machine: walks the table of fallback.py, keeps account of replies, and emits one command a tick."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from splitvla_edge.fallback import (
    TRANSITIONS,
    Asked,
    Chunk,
    Command,
    Event,
    FallbackSettings,
    Miss,
    Reply,
    State,
    TickInputs,
)
from splitvla_edge.robots.base import ActionSpace, Kind

_EPSILON_S = 1e-9  # sums of periods must not turn "exactly the limit" into "above the limit"
_MAX_CHUNK = 256


class FallbackMachine:
    """Owned by the control process and ticked by one thread. All fields with an underscore are its mutable state."""

    def __init__(
        self, settings: FallbackSettings, space: ActionSpace, dt_s: float, *, accept_clipped: bool = False
    ) -> None:
        """dt_s: control period. accept_clipped: execute actions of which tokens had to be clipped into the bins."""
        self.settings, self.space, self.dt_s = settings, space, dt_s
        self._accept_clipped = accept_clipped
        self.state, self.cause = State.INIT, "start"
        self.epoch = 1
        self.highest_sequence = 0
        self._tick = 0
        self._now = -math.inf
        self._gripper = space.gripper_start
        self._last: tuple[float, ...] | None = None
        self._executed: deque[float] = deque(maxlen=_MAX_CHUNK)
        self._begin_epoch(-math.inf)

    def tick(self, now: float, inputs: TickInputs) -> Command:
        """The command for this moment; `now` never falls."""
        self._tick += 1
        self._spend_hold_time(now)
        self._absorb(now, inputs)
        event = next(event for event, holds in _GUARDS if holds(self, now, inputs))
        self._move(now, event)
        return self._act(now) if self.state is State.NOMINAL else self._hold(now, inputs)

    def max_age_s(self) -> float:
        """The oldest frame that an action of the agreed model may come from."""
        return self.settings.max_age_s(self.dt_s, self._chunk_length)

    def _begin_epoch(self, now: float) -> None:
        """Forget every reply; what is asked from now on counts."""
        self._chunk: Chunk | None = None
        self._cursor = 0
        self._chunk_length = 1
        self._flight: Asked | None = None
        self._flight_ends_at = -math.inf
        self._met_at = -math.inf
        self._lost = False
        self._dead_sequence = self.highest_sequence
        self._streak = 0
        self._non_finite = 0
        self._received_invalid = False
        self._usable_after = now
        self._hold_left_s = self.settings.hold_to_stop_s

    def _spend_hold_time(self, now: float) -> None:
        elapsed = max(0.0, now - self._now) if math.isfinite(self._now) else 0.0
        self._now = now
        if self.state is State.HOLD:
            self._hold_left_s -= elapsed
        elif self.state in (State.NOMINAL, State.WAIT):
            refilled = self._hold_left_s + elapsed * self.settings.hold_refill
            self._hold_left_s = min(refilled, self.settings.hold_to_stop_s)

    def _absorb(self, now: float, inputs: TickInputs) -> None:
        """Bring the account of calls up to date: replies in their order, then expiry."""
        self._received_invalid = False
        if inputs.ready is not None:
            self._chunk_length = inputs.ready.chunk_length
        for reply in inputs.replies:
            self._absorb_one(now, reply)
        if self._flight is not None and not now <= self._flight_ends_at:
            self._lose(self._flight.sequence)

    def _absorb_one(self, now: float, reply: Reply) -> None:
        self.highest_sequence = max(self.highest_sequence, reply.sequence)
        if isinstance(reply, Miss):
            self._lose(reply.sequence)
        elif reply.epoch != self.epoch or reply.sequence <= self._dead_sequence:
            return
        elif isinstance(reply, Asked):
            self._flight = reply
            # No call may keep the machine waiting for longer than the longest deadline.
            self._flight_ends_at = min(now + self.settings.deadline_max_ms / 1e3, reply.deadline_at)
        else:
            self._absorb_chunk(now, reply)

    def _lose(self, sequence: int) -> None:
        """A call gave no action: its sequence is dead, and a late reply can never be taken for a newer one."""
        self._dead_sequence = max(self._dead_sequence, sequence)
        self._streak = 0
        self._lost = True
        if self._flight is not None and self._flight.sequence <= self._dead_sequence:
            self._flight = None

    def _absorb_chunk(self, now: float, chunk: Chunk) -> None:
        flight, self._dead_sequence = self._flight, chunk.sequence  # answered once
        if flight is not None and flight.sequence <= chunk.sequence:
            self._flight = None
            if flight.sequence == chunk.sequence and chunk.finished_at > flight.deadline_at:
                self._lose(chunk.sequence)
                return
        finite = all(math.isfinite(value) for row in chunk.actions for value in row)
        self._non_finite = 0 if finite else self._non_finite + 1
        if not (finite and self._well_formed(now, chunk)):
            self._received_invalid = True
            self._streak = 0
            return
        self._met_at, self._lost = chunk.finished_at, False
        self._streak += 1
        if chunk.captured_at >= self._usable_after:
            # Actions executed since the frame was taken are the chunk's past. A single action is for any moment.
            past = sum(at > chunk.captured_at for at in self._executed) if len(chunk.actions) > 1 else 0
            self._chunk, self._cursor = chunk, past

    def _well_formed(self, now: float, chunk: Chunk) -> bool:
        shaped = 1 <= len(chunk.actions) <= _MAX_CHUNK and all(len(row) == self.space.dims for row in chunk.actions)
        return shaped and chunk.captured_at <= now and (self._accept_clipped or chunk.clipped == 0)

    def _move(self, now: float, event: Event) -> None:
        before, transition = self.state, TRANSITIONS[self.state, event]
        self.state = transition.to
        if not (before is State.SAFE_STOP and self.state is State.SAFE_STOP):
            self.cause = transition.cause  # a latched stop keeps the cause that latched it
        if event is Event.RESET:
            self.epoch += 1
            self._last = None
            self._begin_epoch(now)
        elif self.state in (State.INIT, State.HOLD) and before is not self.state:
            self._chunk = None
            self._streak = 0
            self._usable_after = now + self.settings.settle_ms / 1e3

    def _act(self, now: float) -> Command:
        chunk, index = self._chunk, self._cursor
        assert chunk is not None  # the guard of ACTION
        values = self.space.bounded(chunk.actions[index])
        self._cursor += 1
        self._executed.append(now)
        self._last = values
        if self.space.gripper is not None:
            self._gripper = values[self.space.gripper]
        return Command(
            tick=self._tick,
            state=self.state,
            cause=self.cause,
            values=values,
            epoch=self.epoch,
            motion=True,
            sequence=chunk.sequence,
            index=index,
            age_s=now - chunk.captured_at,
        )

    def _hold(self, now: float, inputs: TickInputs) -> Command:
        if self._last is None and inputs.gripper is not None and math.isfinite(inputs.gripper):
            self._gripper = inputs.gripper
        values = self.space.hold(self._last, inputs.position, self._gripper, self._ramp(now))
        return Command(
            tick=self._tick,
            state=self.state,
            cause=self.cause,
            values=values,
            epoch=self.epoch,
            stop=self.state is State.SAFE_STOP,
        )

    def _ramp(self, now: float) -> float:
        if self.space.kind is not Kind.VELOCITY or not self._executed:
            return 0.0
        return max(0.0, 1.0 - (now - self._executed[-1]) * 1e3 / max(self.settings.ramp_ms, 1e-3))

    # The guards, one for each event; `_GUARDS` asks them in the order of `Event`.

    def _contract_broken(self, now: float, inputs: TickInputs) -> bool:
        return bool(inputs.contract) or (inputs.ready is not None and inputs.ready.dims != self.space.dims)

    def _overran(self, now: float, inputs: TickInputs) -> bool:
        return inputs.lateness_s > self.settings.overrun_ticks * self.dt_s

    def _held_too_long(self, now: float, inputs: TickInputs) -> bool:
        return self.state is State.HOLD and self._hold_left_s <= 0.0

    def _camera_stale(self, now: float, inputs: TickInputs) -> bool:
        limit_s = self.settings.camera_stale_ms / 1e3 + _EPSILON_S
        return inputs.frame_at is None or not 0.0 <= now - inputs.frame_at <= limit_s

    def _has_action(self) -> bool:
        return self._chunk is not None and self._cursor < len(self._chunk.actions)

    def _too_old(self, now: float, inputs: TickInputs) -> bool:
        if self._chunk is None or not self._has_action():
            return False
        limit_s = self.settings.max_age_s(self.dt_s, len(self._chunk.actions))
        return now - self._chunk.captured_at > limit_s + _EPSILON_S

    def _unproven(self, now: float, inputs: TickInputs) -> bool:
        resuming = self.state is State.HOLD and self._streak < self.settings.resume_replies
        return resuming and self._has_action()

    def _pending(self, now: float, inputs: TickInputs) -> bool:
        if self._lost:  # a newer call in flight does not make up for the answer that is missing now
            return False
        return self._flight is not None or now - self._met_at <= self.settings.next_call_ms / 1e3 + _EPSILON_S


_Guard = Callable[[FallbackMachine, float, TickInputs], bool]

_GUARDS: tuple[tuple[Event, _Guard], ...] = (
    (Event.ESTOP, lambda machine, now, inputs: inputs.estop),
    (Event.CONTRACT, FallbackMachine._contract_broken),
    (Event.RESET, lambda machine, now, inputs: inputs.reset),
    (Event.OVERRUN, FallbackMachine._overran),
    (Event.NON_FINITE_RUN, lambda machine, now, inputs: machine._non_finite >= machine.settings.non_finite_limit),
    (Event.HOLD_TIMEOUT, FallbackMachine._held_too_long),
    (Event.DISARMED, lambda machine, now, inputs: not inputs.enabled),
    (Event.CAMERA_STALE, FallbackMachine._camera_stale),
    (Event.NOT_READY, lambda machine, now, inputs: inputs.ready is None or not inputs.robot_ready),
    (Event.INVALID, lambda machine, now, inputs: machine._received_invalid),
    (Event.TOO_OLD, FallbackMachine._too_old),
    (Event.UNPROVEN, FallbackMachine._unproven),
    (Event.ACTION, lambda machine, now, inputs: machine._has_action()),
    (Event.PENDING, FallbackMachine._pending),
    (Event.NO_ACTION, lambda machine, now, inputs: True),
)
