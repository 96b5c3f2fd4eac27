"""From what the driver and the step log saw to figures; pure. Times are monotonic seconds, durations in ms or ticks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.faults.driver import Received
from splitvla_edge.daemon.record import StepRecord

STILL = ("HOLD", "SAFE_STOP", "INIT")
_AGE_SLACK_MS = 1.0  # the log rounds nothing, but the age is taken at the tick's start


@dataclass(frozen=True, slots=True)
class Injection:
    """One time that a fault was done: from started_at to ended_at, looked at until until_at."""

    started_at: float
    ended_at: float
    until_at: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one injection did.

    hold_ms: from the fault to the first command of a state without motion, None when it was ridden out. resume_ticks:
    commands from the fault's end up to and with the first motion after the hold, None when none came. latched:
    SAFE_STOP came.
    """

    hold_ms: float | None
    resume_ticks: int | None
    latched: bool


@dataclass(frozen=True, slots=True)
class Account:
    """Of all commands of a run. violations: in words, each with its tick; a good run has none.

    rung_changes: of the payload that ordinary calls are to use.
    """

    commands: int
    motions: int
    oldest_ms: float
    lateness_p99_ms: float
    lateness_max_ms: float
    rung_changes: int
    violations: tuple[str, ...]


def outcome(received: Sequence[Received], injection: Injection, watchdog_stops: Sequence[float] = ()) -> Outcome:
    """What one injection did to the robot, which also stands when its own watchdog has stopped it."""
    during = [each for each in received if injection.started_at <= each.at <= injection.until_at]
    stops = [at for at in watchdog_stops if injection.started_at <= at <= injection.until_at]
    held_at = min([each.at for each in during if each.state in STILL][:1] + stops[:1], default=None)
    if held_at is None:
        return Outcome(None, 0, False)
    after = [each for each in during if each.at >= injection.ended_at]
    return Outcome(
        hold_ms=(held_at - injection.started_at) * 1e3,
        resume_ticks=next((count for count, each in enumerate(after, 1) if each.motion and each.at > held_at), None),
        latched=any(each.state == "SAFE_STOP" for each in during),
    )


def account(received: Sequence[Received], records: Sequence[StepRecord], max_age_ms: float) -> Account:
    """Hold every command of a run against the invariants: one a tick, none stale, none twice, no motion in HOLD."""
    lateness = sorted(record.lateness_ms for record in records) or [0.0]
    ages = [record.age_ms for record in records if record.age_ms is not None]
    return Account(
        commands=len(received),
        motions=sum(each.motion for each in received),
        oldest_ms=max(ages, default=0.0),
        lateness_p99_ms=lateness[min(len(lateness) - 1, int(0.99 * len(lateness)))],
        lateness_max_ms=lateness[-1],
        rung_changes=sum(before.rung != after.rung for before, after in itertools.pairwise(records)),
        violations=(*_of_ticks(received), *_of_motion(received), *_of_age(records, max_age_ms)),
    )


def _of_ticks(received: Sequence[Received]) -> list[str]:
    return [
        f"tick {after.tick} came after {before.tick}"
        for before, after in itertools.pairwise(received)
        if after.tick != before.tick + 1
    ]


def _of_motion(received: Sequence[Received]) -> list[str]:
    found: list[str] = []
    executed: set[tuple[int | None, int | None]] = set()
    newest = 0
    for each in received:
        action = (each.sequence, each.index)
        if each.motion and each.state in STILL:
            found.append(f"tick {each.tick} moved in {each.state}")
        if each.motion and action in executed:
            found.append(f"tick {each.tick} executed {action} again")
        if each.motion and each.sequence is not None:
            if each.sequence < newest:
                found.append(f"tick {each.tick} went back from sequence {newest} to {each.sequence}")
            newest = max(newest, each.sequence)
            executed.add(action)
    return found


def _of_age(records: Sequence[StepRecord], max_age_ms: float) -> list[str]:
    return [
        f"tick {record.tick} executed an action of {record.age_ms:.0f} ms"
        for record in records
        if record.age_ms is not None and record.age_ms > max_age_ms + _AGE_SLACK_MS
    ]
