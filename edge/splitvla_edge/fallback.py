"""What the robot receives on each tick when answers are late or missing: states, events and the table between them.

Rules of this file and of machine.py, which walks the table:
 1. One command a tick, always. Every number in it is finite and inside the limits of the action space.
 2. Within a tick the worst event wins: events are listed worst first, and the first that holds is the tick's event.
 3. `TRANSITIONS` covers every state and event; nothing else moves the machine.
 4. SAFE_STOP is latched: only an operator reset leaves it, into INIT and a new epoch.
 5. An action is executed at most once, never when older than its maximum age, never from an older epoch, and never
    from a frame captured before the robot had settled after its last HOLD.
 6. HOLD never repeats a delta and never moves the gripper's target.
 7. No clock and no I/O: `now` is monotonic seconds of this machine, and all captures and deadlines are on that clock.
 8. These stops are requests by software, comparable to a category 2 stop. They are never a safety function.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import StageTimes


class State(enum.Enum):
    """INIT: disarmed. NOMINAL: an action was executed. WAIT: the next one is due. HOLD: none is. SAFE_STOP: latched."""

    INIT = "INIT"
    NOMINAL = "NOMINAL"
    WAIT = "WAIT"
    HOLD = "HOLD"
    SAFE_STOP = "SAFE_STOP"


class Event(enum.Enum):
    """What a tick found, worst first; the value is the cause that the log and the live view show."""

    ESTOP = "e-stop pressed"
    CONTRACT = "contract violated"
    RESET = "operator reset"
    OVERRUN = "control loop overran"
    NON_FINITE_RUN = "non-finite actions in a row"
    HOLD_TIMEOUT = "held too long"
    DISARMED = "operator has not enabled the robot"
    CAMERA_STALE = "camera stale"
    NOT_READY = "robot or perception not ready"
    INVALID = "invalid action received"
    TOO_OLD = "action too old"
    UNPROVEN = "resuming: link not proven yet"
    ACTION = "action executed"
    PENDING = "next action due"
    NO_ACTION = "no action"


@dataclass(frozen=True, slots=True)
class Transition:
    """Where an event leads, and why."""

    to: State
    cause: str


_I, _N, _W, _H, _S = State.INIT, State.NOMINAL, State.WAIT, State.HOLD, State.SAFE_STOP

# fmt: off
_ROWS: dict[Event, tuple[State, State, State, State, State]] = {
    # from:               INIT NOMINAL WAIT HOLD SAFE_STOP
    Event.ESTOP:          (_S, _S, _S, _S, _S),
    Event.CONTRACT:       (_S, _S, _S, _S, _S),
    Event.RESET:          (_I, _I, _I, _I, _I),
    Event.OVERRUN:        (_I, _S, _S, _S, _S),  # a disarmed robot has nothing to stop
    Event.NON_FINITE_RUN: (_S, _S, _S, _S, _S),
    Event.HOLD_TIMEOUT:   (_I, _S, _S, _S, _S),
    Event.DISARMED:       (_I, _I, _I, _I, _S),
    Event.CAMERA_STALE:   (_I, _H, _H, _H, _S),
    Event.NOT_READY:      (_I, _H, _H, _H, _S),
    Event.INVALID:        (_I, _H, _H, _H, _S),
    Event.TOO_OLD:        (_I, _H, _H, _H, _S),
    Event.UNPROVEN:       (_I, _H, _H, _H, _S),
    Event.ACTION:         (_N, _N, _N, _N, _S),
    Event.PENDING:        (_I, _W, _W, _H, _S),
    Event.NO_ACTION:      (_I, _H, _H, _H, _S),
}
# fmt: on

TRANSITIONS: dict[tuple[State, Event], Transition] = {
    (state, event): Transition(to, event.value)
    for event, row in _ROWS.items()
    for state, to in zip(State, row, strict=True)
}


@dataclass(frozen=True, slots=True)
class FallbackSettings:
    """Times of the fallback machine.

    max_age_ms: oldest frame that a single action may come from. chunk_max_age_ms: cap of the same for chunks, which is
    otherwise their length plus two ticks. deadline_*_ms: bounds of a call's deadline. next_call_ms: how long after an
    answer the next call may begin before the action counts as lost. hold_to_stop_s: hold time left to SAFE_STOP; it
    drains at 1 and refills at hold_refill while actions flow, so that a flapping link gets there too. settle_ms: from
    the beginning of HOLD to the first frame that counts. ramp_ms: a velocity's way to zero.
    """

    max_age_ms: float = 300.0
    chunk_max_age_ms: float = 1000.0
    deadline_min_ms: float = 100.0
    deadline_max_ms: float = 500.0
    next_call_ms: float = 300.0
    camera_stale_ms: float = 500.0
    settle_ms: float = 100.0
    ramp_ms: float = 100.0
    hold_to_stop_s: float = 5.0
    hold_refill: float = 0.25
    resume_replies: int = 2
    non_finite_limit: int = 3
    overrun_ticks: float = 3.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            low, high = (1, 1000) if name in ("resume_replies", "non_finite_limit") else (0, 600_000)
            if not low <= value <= high:
                raise ConfigError(f"fallback.{name} is {value}; expected {low}..{high}")
        if self.deadline_min_ms > self.deadline_max_ms:
            raise ConfigError(
                f"fallback.deadline_min_ms {self.deadline_min_ms} is above deadline_max_ms {self.deadline_max_ms}"
            )

    def max_age_s(self, dt_s: float, chunk_length: int) -> float:
        """The oldest that a command's frame may be: `min(K dt + 2 dt, chunk_max_age)`, or max_age for one action."""
        if chunk_length <= 1:
            return self.max_age_ms / 1e3
        return min((chunk_length + 2) * dt_s, self.chunk_max_age_ms / 1e3)


def deadline_s(age_s: float, max_age_s: float, low_s: float, high_s: float) -> float:
    """For a call on a frame of this age: what is left of its maximum age, inside the deadline's bounds."""
    return min(max(max_age_s - age_s, low_s), high_s)


class Outcome(enum.IntEnum):
    """How a call ended; MET is the only one with an action."""

    MET = 0
    MISSED = 1
    UNREACHABLE = 2
    OVERLOADED = 3
    SUPERSEDED = 4
    REJECTED = 5
    EARLY_STOP = 6
    FAULT = 7


@dataclass(frozen=True, slots=True)
class Ready:
    """Perception agreed with the server on a model whose chunks are (chunk_length, dims)."""

    dims: int
    chunk_length: int
    fingerprint: str  # first 16 hex digits


@dataclass(frozen=True, slots=True)
class Asked:
    """A call began on the frame captured at captured_at; its reply counts only until deadline_at."""

    sequence: int
    epoch: int
    captured_at: float
    deadline_at: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """A call was met at finished_at. actions: chunk_length rows of dims numbers in the robot's units."""

    sequence: int
    epoch: int
    captured_at: float
    finished_at: float
    actions: tuple[tuple[float, ...], ...]
    clipped: int = 0
    stages: StageTimes = field(default_factory=StageTimes)
    wire_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Miss:
    """A call, or an attempt to connect (sequence 0), that gave no action."""

    sequence: int
    outcome: Outcome
    text: str = ""


Reply = Asked | Chunk | Miss


@dataclass(frozen=True, slots=True)
class TickInputs:
    """All that happened since the last tick.

    replies: in the order of arrival. frame_at: capture time of the newest camera frame, None before the first.
    contract: what breaks the contract, empty if nothing does. lateness_s: this tick's start less its schedule.
    gripper, position: as the robot measures them, None where it does not.
    """

    replies: tuple[Reply, ...] = ()
    frame_at: float | None = None
    ready: Ready | None = None
    enabled: bool = True
    robot_ready: bool = True
    estop: bool = False
    contract: str = ""
    reset: bool = False
    lateness_s: float = 0.0
    gripper: float | None = None
    position: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """What the robot gets on this tick.

    values: dims finite numbers in the action space; empty only while an absolute space knows no pose to keep, and the
    driver then sends nothing. motion: the values are an action of the policy. stop: ask the driver for its own stop.
    sequence, index and age_s tell which action of which reply it is; None unless motion.
    """

    tick: int
    state: State
    cause: str
    values: tuple[float, ...]
    epoch: int
    motion: bool = False
    stop: bool = False
    sequence: int | None = None
    index: int | None = None
    age_s: float | None = None
