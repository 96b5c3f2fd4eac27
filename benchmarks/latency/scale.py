"""The tables of many robots on one server, and of a long run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.latency.fleet import Fleet
from benchmarks.latency.results import Section, Summary

COUNTS = (1, 2, 4, 8, 16)
_MIB = 1 << 20
_SETTLED = 0.2  # of a soak's time, after which memory should not grow any more
_SCALE_TEXT = """Each robot is a process that asks {hz:g} times a second with embeddings recorded as {rung}, one call
in flight, a deadline of {deadline:.0f} ms, and encodes nothing. Fairness is Jain's index over the robots' answers.
CPU is in processors: robots and server share the {cores} of this machine, so that the last rows measure it as much as
the server."""
_SOAK_TEXT = """Slopes are least squares over the last {share:.0%} of the time, with their 95 % interval: an interval
that holds zero is no leak that this long a run can show."""


@dataclass(frozen=True, slots=True)
class Slope:
    """Of memory, MiB an hour, and half its 95 % interval."""

    mib_per_hour: float
    half_width: float

    @classmethod
    def of(cls, seconds: Sequence[float], rss: Sequence[int]) -> Slope:
        """At least four samples."""
        line, covariance = np.polyfit(np.asarray(seconds) / 3600, np.asarray(rss) / _MIB, 1, cov=True)
        return cls(float(line[0]), 1.96 * float(np.sqrt(covariance[0, 0])))

    def __str__(self) -> str:
        return f"{self.mib_per_hour:+.1f} +- {self.half_width:.1f}"


def scale_section(fleets: Sequence[Fleet], model: str, rung: str, hz: float, deadline_s: float, cores: int) -> Section:
    rows, metrics = [], {}
    for fleet in fleets:
        count = len(fleet.robots)
        asked = hz * count
        summary = Summary.of(fleet.latencies_ms or [float("inf")])
        if fleet.latencies_ms:
            metrics[f"{count} robots"] = summary
        misses = ", ".join(f"{number} {kind}" for kind, number in sorted(fleet.misses.items())) or "none"
        rows.append(
            (
                str(count),
                f"{asked:.0f}",
                f"{fleet.actions_per_s:.1f}",
                *summary.cells(),
                f"{fleet.fairness:.3f}",
                misses,
                "-" if fleet.server_cpu is None else f"{fleet.server_cpu:.2f}",
                f"{fleet.robots_cpu:.2f}",
                "-" if fleet.server_rss is None else f"{fleet.server_rss / _MIB:,.0f}",
                f"{fleet.robots[0].rss_bytes / _MIB:,.0f}",
            )
        )
    return Section(
        name="scale",
        title=f"Robots on one server: {model}",
        header=(
            *("robots", "asked a second", "actions a second", "p50 ms", "p90", "p99", "max", "fairness", "misses"),
            *("server CPU", "robots' CPU", "server MiB", "robot MiB"),
        ),
        rows=tuple(rows),
        n=sum(len(fleet.latencies_ms) for fleet in fleets),
        metrics=metrics,
        text=_SCALE_TEXT.format(hz=hz, rung=rung, deadline=deadline_s * 1e3, cores=cores),
    )


def soak_section(fleet: Fleet, model: str) -> Section:
    minutes = fleet.seconds / 60
    settled = [row for row in fleet.memory if row[0] >= _SETTLED * fleet.seconds]
    seconds = [row[0] for row in settled]
    server = Slope.of(seconds, [rss for _, rss, _ in settled])
    robot = Slope.of(seconds, [rss for _, _, rss in settled])
    quarter = fleet.seconds / 4
    first, last = _between(fleet, 0, quarter), _between(fleet, fleet.seconds - quarter, fleet.seconds + 60)
    misses = ", ".join(f"{number} {kind}" for kind, number in sorted(fleet.misses.items())) or "none"
    rows = (
        ("answers", f"{len(fleet.latencies_ms):,}"),
        ("misses", misses),
        ("p50 / p99 ms, first quarter", f"{first.p50:.1f} / {first.p99:.1f}"),
        ("p50 / p99 ms, last quarter", f"{last.p50:.1f} / {last.p99:.1f}"),
        ("server memory at the end, MiB", f"{settled[-1][1] / _MIB:,.1f}"),
        ("server memory slope, MiB an hour", str(server)),
        ("one robot's memory slope, MiB an hour", str(robot)),
        ("fairness", f"{fleet.fairness:.4f}"),
    )
    return Section(
        name="soak",
        title=f"Soak: {len(fleet.robots)} robots for {minutes:.0f} minutes; {model}",
        header=("what", "seen"),
        rows=rows,
        n=len(fleet.latencies_ms),
        metrics={"first quarter": first, "last quarter": last},
        text=_SOAK_TEXT.format(share=1 - _SETTLED),
    )


def _between(fleet: Fleet, low: float, high: float) -> Summary:
    chosen = [
        latency
        for robot in fleet.robots
        for latency, at in zip(robot.latencies_ms, robot.at_s, strict=True)
        if low <= at < high
    ]
    return Summary.of(chosen or [float("inf")])
