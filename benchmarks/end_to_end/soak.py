"""The tables of a long run: does memory grow, does anything become slower, does anything fail?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.end_to_end.fleet import Fleet
from benchmarks.end_to_end.results import Section, Summary

_MIB = 1 << 20
_SETTLED = 0.2  # of a soak's time, after which memory should not grow any more
_TEXT = """Slopes are least squares over the last {share:.0%} of the time, with their 95 % interval, which takes into
account that successive samples resemble each other: an interval that holds zero is no leak that this long a run can
show. A robot's last answer is the draft of its next: {accepted:.1f} tokens of each were right on average."""
_ELSEWHERE = " The server's memory is its own machine's to tell."


@dataclass(frozen=True, slots=True)
class Slope:
    """Of memory, MiB an hour, and half its 95 % interval."""

    mib_per_hour: float
    half_width: float

    @classmethod
    def of(cls, seconds: Sequence[float], rss: Sequence[int]) -> Slope:
        """At least four samples. The interval is widened by the residuals' lag-one correlation, as for AR(1) noise."""
        hours, mib = np.asarray(seconds) / 3600, np.asarray(rss) / _MIB
        line, covariance = np.polyfit(hours, mib, 1, cov=True)
        left = mib - np.polyval(line, hours)
        power = float(left @ left)
        alike = float(left[:-1] @ left[1:]) / power if power > 0 else 0.0
        alike = min(max(alike, 0.0), 0.99)
        widened = math.sqrt((1 + alike) / (1 - alike))
        return cls(float(line[0]), 1.96 * widened * float(np.sqrt(covariance[0, 0])))

    def __str__(self) -> str:
        return f"{self.mib_per_hour:+.1f} +- {self.half_width:.1f}"


@dataclass(frozen=True, slots=True)
class Minute:
    """One of the soak. latency: None where nothing was answered. rss in bytes, at its end; None where nobody looked."""

    number: int
    latency: Summary | None
    missed: int
    server_rss: int | None
    robot_rss: int | None


def slopes(fleet: Fleet) -> tuple[Slope | None, Slope]:
    """Of the server, None where it is on another machine, and of one robot; after they have settled."""
    settled = [row for row in fleet.memory if row[0] >= _SETTLED * fleet.seconds]
    seconds = [row[0] for row in settled]
    server = None if fleet.server_rss is None else Slope.of(seconds, [rss for _, rss, _ in settled])
    return server, Slope.of(seconds, [rss for _, _, rss in settled])


def minutes(fleet: Fleet) -> list[Minute]:
    """The run cut into minutes; an answer belongs to the one in which it came, one after the end to the last."""
    found = []
    count = max(1, math.ceil(fleet.seconds / 60 - 1e-9))
    for number in range(count):
        begin, end = 60.0 * number, 60.0 * (number + 1) if number + 1 < count else math.inf
        latencies = _between(fleet, begin, end)
        missed = sum(begin <= at < end for robot in fleet.robots for at in robot.missed_at_s)
        rows = [row for row in fleet.memory if begin <= row[0] < end]
        server = rows[-1][1] if rows and fleet.server_rss is not None else None
        robot = rows[-1][2] if rows else None
        found.append(Minute(number + 1, Summary.of(latencies) if latencies else None, missed, server, robot))
    return found


def soak_sections(fleet: Fleet, model: str) -> list[Section]:
    """What came of it, and minute by minute."""
    title = f"Soak: {len(fleet.robots)} robots for {fleet.seconds / 60:.0f} minutes; {model}"
    return [_verdict(fleet, title), _by_minute(fleet, title)]


def _verdict(fleet: Fleet, title: str) -> Section:
    server, robot = slopes(fleet)
    quarter = fleet.seconds / 4
    quarters = {
        "first quarter": _between(fleet, 0, quarter),
        "last quarter": _between(fleet, fleet.seconds - quarter, math.inf),
    }
    rows = (
        ("answers", f"{len(fleet.latencies_ms):,}"),
        ("misses", fleet.missed),
        *((f"p50, p90, p99, max ms, {name}", " / ".join(Summary.cells_of(part))) for name, part in quarters.items()),
        ("server memory at the end, MiB", _mib(fleet.server_rss)),
        ("server memory slope, MiB an hour", "-" if server is None else str(server)),
        ("one robot's memory slope, MiB an hour", str(robot)),
        ("fairness", f"{fleet.fairness:.4f}"),
    )
    return Section(
        name="soak",
        title=title,
        header=("what", "seen"),
        rows=rows,
        n=len(fleet.latencies_ms),
        metrics={name: Summary.of(part) for name, part in quarters.items() if part},
        text=_TEXT.format(share=1 - _SETTLED, accepted=fleet.accepted) + (_ELSEWHERE if server is None else ""),
    )


def _by_minute(fleet: Fleet, title: str) -> Section:
    rows = []
    for minute in minutes(fleet):
        latency = minute.latency
        cells = ("0", "-", "-", "-") if latency is None else (f"{latency.n:,}", *_times(latency))
        rows.append((str(minute.number), *cells, str(minute.missed), _mib(minute.server_rss), _mib(minute.robot_rss)))
    return Section(
        name="soak-minutes",
        title=f"{title}, minute by minute",
        header=("minute", "answers", "p50 ms", "p99", "max", "missed", "server MiB", "one robot MiB"),
        rows=tuple(rows),
        n=len(fleet.latencies_ms),
    )


def _times(latency: Summary) -> tuple[str, str, str]:
    return f"{latency.p50:.1f}", f"{latency.p99:.1f}", f"{latency.max:.1f}"


def _mib(rss: int | None) -> str:
    return "-" if rss is None else f"{rss / _MIB:,.1f}"


def _between(fleet: Fleet, low: float, high: float) -> list[float]:
    return [
        latency
        for robot in fleet.robots
        for latency, at in zip(robot.latencies_ms, robot.at_s, strict=True)
        if low <= at < high
    ]
