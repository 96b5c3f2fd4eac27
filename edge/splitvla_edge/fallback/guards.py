"""One guard for each event: what must be true of the machine and of this tick's inputs for the event to hold.

Where a guard can hold in some states only, `GUARDS` says so, and in the others it is not asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from splitvla_edge.fallback.messages import TickInputs
from splitvla_edge.fallback.motion import within_reach
from splitvla_edge.fallback.table import REMOTE, Event, Mode, State
from splitvla_edge.robots.action_space import Kind

if TYPE_CHECKING:
    from splitvla_edge.fallback.machine import FallbackMachine

EPSILON_S = 1e-9  # sums of periods must not turn "exactly the limit" into "above the limit"

Guard = Callable[["FallbackMachine", float, TickInputs], bool]


def camera_stale(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    """Also true for a frame from the future: then its clock is not ours."""
    limit_s = machine.settings.camera_stale_ms / 1e3 + EPSILON_S
    return inputs.frame_at is None or not 0.0 <= now - inputs.frame_at <= limit_s


def not_ready(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    return inputs.ready is None or not inputs.robot_ready


def _contract_broken(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    return bool(inputs.contract) or (inputs.ready is not None and inputs.ready.dims != machine.space.dims)


def _overran(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    return inputs.lateness_s > machine.settings.overrun_ticks * machine.dt_s


def _non_finite_run(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    return machine.account.non_finite >= machine.settings.non_finite_limit


def _held_too_long(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    return machine.hold_time.empty()


def _local_too_long(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    return machine.local_time.empty()


def _too_old(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    chunk = machine.account.chunk
    if chunk is None or not machine.account.has_action():
        return False
    limit_s = machine.settings.max_age_s(machine.dt_s, len(chunk.actions))
    return now - chunk.captured_at > limit_s + EPSILON_S


def _clearing(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    return machine.account.has_action() and not machine.cleared(now)


def _unproven(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    proven = machine.account.streak >= machine.settings.resume_replies
    return machine.account.has_action() and not proven


def _unplaced(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    if machine.space.kind is not Kind.ABSOLUTE or not machine.account.has_action():
        return False
    return (inputs.position or machine.last_values) is None


def _jump(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    chunk = machine.account.chunk
    if chunk is None or not machine.account.has_action():
        return False
    pose = inputs.position or machine.last_values
    return not within_reach(machine.space, chunk.actions[machine.account.cursor], pose, machine.limits)


def _relieved(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    return machine.account.streak >= machine.settings.resume_replies


def _coasting(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    chunk = machine.account.chunk
    if chunk is None or len(chunk.actions) == 1 or not machine.account.has_action():
        return False
    return machine.account.lost or machine.late(now)


def _degraded_action(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    chunk = machine.account.chunk
    return chunk is not None and chunk.rung > 0 and machine.account.has_action()


def _action(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    return machine.account.has_action()


def _pending(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    """Single actions only: a chunk that has run out leaves nothing to wait on."""
    account = machine.account
    if machine.chunk_length > 1 or account.lost:  # a newer call does not make up for the answer that is missing now
        return False
    return account.flight is not None or now - account.met_at <= machine.settings.next_call_ms / 1e3 + EPSILON_S


def _forced(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    return machine.mode is Mode.FORCED_LOCAL and machine.local_healthy(now)


def _local_action(machine: FallbackMachine, now: float, inputs: TickInputs) -> bool:
    if machine.state is State.LOCAL:
        return machine.local_healthy(now)
    if machine.space.kind is Kind.ABSOLUTE and machine.space.set_point_at(inputs.position) is None:
        return False  # outside the limits: whatever it commands would make the arm jump
    waited = now - machine.held_since + EPSILON_S >= machine.settings.local_after_s
    return waited and machine.local_healthy(now) and machine.stillness.still(now) and machine.cleared(now)


_ANY = frozenset(State)
_INIT, _HOLD, _LOCAL = (frozenset({state}) for state in (State.INIT, State.HOLD, State.LOCAL))
_AWAY = _HOLD | _LOCAL
_ATTACHED = REMOTE | {State.WAIT}

# In the order of `Event`: worst first, and the first that holds is the tick's event.
GUARDS: tuple[tuple[Event, frozenset[State], Guard], ...] = (
    (Event.ESTOP, _ANY, lambda machine, now, inputs: inputs.estop),
    (Event.CONTRACT, _ANY, _contract_broken),
    (Event.RESET, _ANY, lambda machine, now, inputs: inputs.reset),
    (Event.OVERRUN, _ANY, _overran),
    (Event.NON_FINITE_RUN, _ANY, _non_finite_run),
    (Event.HOLD_TIMEOUT, _HOLD, _held_too_long),
    (Event.LOCAL_TIMEOUT, _LOCAL, _local_too_long),
    (Event.DISARMED, _ANY, lambda machine, now, inputs: not inputs.enabled),
    (Event.CAMERA_STALE, _ANY, lambda machine, now, inputs: machine.stale),
    (Event.NOT_READY, _ANY, lambda machine, now, inputs: machine.unready),
    (Event.INVALID, _ANY, lambda machine, now, inputs: machine.account.received_invalid),
    (Event.TOO_OLD, _ANY, _too_old),
    (Event.UNPROVEN, _HOLD, _unproven),
    (Event.CLEARING, _HOLD, _clearing),
    (Event.UNPLACED, _ANY - _ATTACHED, _unplaced),
    (Event.JUMP, _ANY - _ATTACHED, _jump),
    (Event.RELIEVED, _LOCAL, _relieved),
    (Event.COASTING, _ANY, _coasting),
    (Event.DEGRADED_ACTION, _ANY, _degraded_action),
    (Event.ACTION, _ANY, _action),
    (Event.FORCED, _INIT, _forced),
    (Event.LOCAL_ACTION, _AWAY, _local_action),
    (Event.PENDING, _ATTACHED, _pending),
    (Event.NO_ACTION, _ANY, lambda machine, now, inputs: True),
)

# The guards that can hold in a state, which are those that a tick in it asks.
GUARDS_IN: dict[State, tuple[tuple[Event, Guard], ...]] = {
    state: tuple((event, guard) for event, states, guard in GUARDS if state in states) for state in State
}
