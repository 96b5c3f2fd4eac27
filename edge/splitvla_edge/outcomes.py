"""How a call ended, by the error that it raised."""

from __future__ import annotations

from splitvla_edge.fallback import Outcome
from splitvla_shared.errors import (
    DeadlineMissed,
    EarlyStop,
    KeyFrameNeeded,
    ObservationError,
    Overloaded,
    RequestRejected,
    SplitVLAError,
    Superseded,
    Unreachable,
)

# The first class that an error belongs to says how its call ended; whatever else the policy raises is a fault.
OUTCOMES: tuple[tuple[type[SplitVLAError], Outcome], ...] = (
    (DeadlineMissed, Outcome.MISSED),
    (Unreachable, Outcome.UNREACHABLE),
    (Overloaded, Outcome.OVERLOADED),
    (Superseded, Outcome.SUPERSEDED),
    (KeyFrameNeeded, Outcome.SUPERSEDED),  # by the next frame, which is sent whole: nobody's fault
    (RequestRejected, Outcome.REJECTED),
    (ObservationError, Outcome.REJECTED),
    (EarlyStop, Outcome.EARLY_STOP),
    (SplitVLAError, Outcome.FAULT),
)


def outcome_of(error: SplitVLAError) -> Outcome:
    return next(outcome for kind, outcome in OUTCOMES if isinstance(error, kind))
