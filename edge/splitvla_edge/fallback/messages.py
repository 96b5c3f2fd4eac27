"""What goes into the fallback machine and what comes out: replies, inputs of a tick, command, hint to perception.

What every tick makes anew is a NamedTuple: a frozen dataclass takes five times as long to make.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from splitvla_edge.fallback.table import State
from splitvla_shared.nouns import ServerHints, StageTimes


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
    """Perception agreed with the server on a model whose chunks are (chunk_length, dims).

    ladder: bytes of a frame at each payload rung, best first.
    """

    dims: int
    chunk_length: int
    fingerprint: str  # first 16 hex digits
    ladder: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A call began on the frame captured at captured_at; its reply counts only until deadline_at."""

    sequence: int
    epoch: int
    captured_at: float
    deadline_at: float
    rung: int = 0


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
    rung: int = 0
    hints: ServerHints = field(default_factory=ServerHints)


@dataclass(frozen=True, slots=True)
class Miss:
    """A call, or an attempt to connect (sequence 0), that gave no action."""

    sequence: int
    outcome: Outcome
    text: str = ""


Reply = Asked | Chunk | Miss


@dataclass(frozen=True, slots=True)
class LocalChunk:
    """The edge's own policy answered. agreement: share of its last `samples` answers that agreed with the server's."""

    number: int  # rises with every answer
    captured_at: float
    actions: tuple[tuple[float, ...], ...]
    agreement: float
    samples: int


class TickInputs(NamedTuple):
    """All that happened since the last tick.

    replies: in the order of arrival. local: the newest answer of the local policy. frame_at: capture time of the
    newest camera frame, None before the first. enabled: False while the robot's operator has disarmed it. contract:
    what breaks the contract, empty if nothing does. lateness_s: this tick's start less its schedule, which is one
    period after the tick before. gripper, position: as the robot measures them, None where it does not.
    """

    replies: tuple[Reply, ...] = ()
    local: LocalChunk | None = None
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

    values: dims finite numbers in the action space; empty only while an absolute space knows no pose to keep, or nobody
    knows what the gripper of a robot that is not ready yet does; the driver then sends nothing. motion: the values are
    an action of a policy; without it, a driver that can latch its absolute pose should. stop: ask the driver for its
    own stop. sequence, index and age_s tell which action of which reply it is: None unless motion, and in LOCAL
    `sequence` is None too.
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


class Hint(NamedTuple):
    """Control to perception, every tick: tag calls with `epoch`, number them above `sequence_floor`.

    A call's deadline follows from its frame's age, max_age_s and the bounds. enabled False: make no calls.
    rung: which payload to send. gap_s: between the beginnings of two calls, at least. local: the local policy is wanted
    on every frame, before the call.
    """

    epoch: int
    sequence_floor: int
    max_age_s: float
    deadline_min_s: float
    deadline_max_s: float
    enabled: bool
    rung: int = 0
    gap_s: float = 0.0
    local: bool = False


def deadline_s(age_s: float, max_age_s: float, low_s: float, high_s: float) -> float:
    """For a call on a frame of this age: what is left of its maximum age, inside the deadline's bounds."""
    return min(max(max_age_s - age_s, low_s), high_s)
