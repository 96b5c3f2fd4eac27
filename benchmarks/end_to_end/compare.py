"""Is this run slower than an earlier one, by more than the noise of both, with the machine's own speed taken out?

A shared machine is half as fast today as yesterday. Every run therefore times a yardstick, arithmetic and copying that
no change of this project can touch, and what is compared are times in units of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import report
from benchmarks.end_to_end.results import Recorded

# A change counts when it is above this share, and above so many standard errors of both medians.
LEAST_CHANGE = 0.10
_SIGMAS = 3.0
_YARDSTICK_ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Change:
    """One metric in both runs. old, new: medians, old already at the new run's speed. allowed: what noise may do."""

    name: str
    old: float
    new: float
    allowed: float

    @property
    def verdict(self) -> str:
        if self.new - self.old > self.allowed:
            return "SLOWER"
        return "faster" if self.old - self.new > self.allowed else "same"


def compare(old: Recorded, new: Recorded) -> list[Change]:
    """The metrics that both runs have, in the new run's order."""
    speed = new.yardstick_ms / old.yardstick_ms
    changes = []
    for name, after in new.metrics.items():
        if (before := old.metrics.get(name)) is None:
            continue
        was, noise = before.p50 * speed, before.noise * speed
        allowed = max(LEAST_CHANGE * was, _SIGMAS * float(np.hypot(noise, after.noise)))
        changes.append(Change(name, was, after.p50, allowed))
    return changes


def regressions(changes: Sequence[Change]) -> list[Change]:
    return [change for change in changes if change.verdict == "SLOWER"]


def render(changes: Sequence[Change], old: Recorded, new: Recorded) -> str:
    """A table of what changed, and one line of summary."""
    speed = new.yardstick_ms / old.yardstick_ms
    moved = [change for change in changes if change.verdict != "same"]
    rows = [
        (change.name, f"{change.old:.2f}", f"{change.new:.2f}", f"{change.allowed:.2f}", change.verdict)
        for change in moved
    ]
    header = ("metric, p50", "before (at today's speed)", "now", "noise allows", "verdict")
    table = report.table(header, rows) if moved else ""
    slower = len(regressions(changes))
    return (
        f"{table}{len(changes)} metrics compared: {slower} slower, {len(moved) - slower} faster, "
        f"{len(changes) - len(moved)} within the noise; the machine takes {speed:.2f} x the time of that run's"
    )


def yardstick_ms() -> float:
    """Median time of a fixed piece of work of one thread: a sort, a pass of arithmetic and a copy."""
    block = np.random.default_rng(0).standard_normal(1 << 17, dtype=np.float32)
    samples = []
    for _ in range(_YARDSTICK_ROUNDS):
        started = time.perf_counter()
        np.exp(np.sort(block)).copy()
        samples.append((time.perf_counter() - started) * 1e3)
    return float(np.median(samples))
