"""The table of the fallback machine: its states, what a tick may find, and where that leads from every state."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.Enum):
    """What the robot receives.

    INIT: disarmed, hold. NOMINAL: the newest answer's action for this moment. DEGRADED: the same, sent with a payload
    below the best. COAST: the rest of a chunk whose successor is late. WAIT: hold until the answer that is due (single
    actions only). HOLD: hold, and the link must prove itself. LOCAL: the edge's own policy, slowly. SAFE_STOP: latched.
    """

    INIT = "INIT"
    NOMINAL = "NOMINAL"
    DEGRADED = "DEGRADED"
    COAST = "COAST"
    WAIT = "WAIT"
    HOLD = "HOLD"
    LOCAL = "LOCAL"
    SAFE_STOP = "SAFE_STOP"

    __hash__ = object.__hash__  # there is one of each: not by name, in Python, several times a tick


REMOTE = frozenset({State.NOMINAL, State.DEGRADED, State.COAST})  # an action of the server is executed


class Mode(enum.Enum):
    """The operator's choice. SHADOW: decide and log, change nothing on the robot. FORCED_LOCAL: never the server."""

    NORMAL = "normal"
    SHADOW = "shadow"
    FORCED_LOCAL = "forced-local"


class Event(enum.Enum):
    """What a tick found, worst first; the value is the cause that the log and the live view show."""

    ESTOP = "e-stop pressed"
    CONTRACT = "contract violated"
    RESET = "operator reset"
    OVERRUN = "control loop overran"
    NON_FINITE_RUN = "non-finite actions in a row"
    HOLD_TIMEOUT = "held too long"
    LOCAL_TIMEOUT = "on the local policy for too long"
    DISARMED = "operator has not enabled the robot"
    CAMERA_STALE = "camera stale"
    NOT_READY = "robot or perception not ready"
    INVALID = "invalid action received"
    TOO_OLD = "action too old"
    UNPROVEN = "resuming: link not proven yet"
    CLEARING = "resuming: cause of the hold not gone for long enough"
    UNPLACED = "resuming: the robot reports no position, which its absolute targets need"
    JUMP = "resuming: first target too far from the robot's pose"
    RELIEVED = "link proven: the local policy gives up control"
    COASTING = "next chunk late: playing the rest of this one"
    DEGRADED_ACTION = "action executed, smaller payload"
    ACTION = "action executed"
    FORCED = "operator wants the local policy"
    LOCAL_ACTION = "local policy acts"
    PENDING = "next action due"
    NO_ACTION = "no action"

    __hash__ = object.__hash__  # as State's


@dataclass(frozen=True, slots=True)
class Transition:
    """Where an event leads, and why."""

    to: State
    cause: str


_I, _N, _D, _C = State.INIT, State.NOMINAL, State.DEGRADED, State.COAST
_W, _H, _L, _S = State.WAIT, State.HOLD, State.LOCAL, State.SAFE_STOP

# fmt: off
_ROWS: dict[Event, tuple[State, ...]] = {
    # from:                INIT NOMI DEGR COAS WAIT HOLD LOCA SAFE_STOP
    Event.ESTOP:           (_S, _S, _S, _S, _S, _S, _S, _S),
    Event.CONTRACT:        (_S, _S, _S, _S, _S, _S, _S, _S),
    Event.RESET:           (_I, _I, _I, _I, _I, _I, _I, _I),
    Event.OVERRUN:         (_I, _S, _S, _S, _S, _S, _S, _S),  # a disarmed robot has nothing to stop
    Event.NON_FINITE_RUN:  (_S, _S, _S, _S, _S, _S, _S, _S),
    Event.HOLD_TIMEOUT:    (_I, _S, _S, _S, _S, _S, _S, _S),
    Event.LOCAL_TIMEOUT:   (_I, _S, _S, _S, _S, _S, _S, _S),
    Event.DISARMED:        (_I, _I, _I, _I, _I, _I, _I, _S),
    Event.CAMERA_STALE:    (_I, _H, _H, _H, _H, _H, _H, _S),
    Event.NOT_READY:       (_I, _H, _H, _H, _H, _H, _H, _S),
    Event.INVALID:         (_I, _H, _H, _H, _H, _H, _H, _S),
    Event.TOO_OLD:         (_I, _H, _H, _H, _H, _H, _H, _S),
    Event.UNPROVEN:        (_I, _H, _H, _H, _H, _H, _H, _S),
    Event.CLEARING:        (_I, _H, _H, _H, _H, _H, _H, _S),
    Event.UNPLACED:        (_I, _H, _H, _H, _H, _H, _H, _S),
    Event.JUMP:            (_I, _H, _H, _H, _H, _H, _H, _S),
    Event.RELIEVED:        (_I, _H, _H, _H, _H, _H, _H, _S),
    Event.COASTING:        (_I, _C, _C, _C, _C, _H, _H, _S),
    Event.DEGRADED_ACTION: (_D, _D, _D, _D, _D, _D, _H, _S),
    Event.ACTION:          (_N, _N, _N, _N, _N, _N, _H, _S),
    Event.FORCED:          (_H, _H, _H, _H, _H, _H, _H, _S),
    Event.LOCAL_ACTION:    (_I, _H, _H, _H, _H, _L, _L, _S),
    Event.PENDING:         (_I, _W, _W, _H, _W, _H, _H, _S),
    Event.NO_ACTION:       (_I, _H, _H, _H, _H, _H, _H, _S),
}
# fmt: on

TRANSITIONS: dict[tuple[State, Event], Transition] = {
    (state, event): Transition(to, event.value)
    for event, row in _ROWS.items()
    for state, to in zip(State, row, strict=True)
}
