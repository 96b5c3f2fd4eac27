"""Every way over other links: what the link adds to what was measured here, and what a robot makes of it. Pure.

Rules of this file: no clock and no socket. A link's times come from the emulator's own model, so that the same
`Conditions` drive the real sockets that hold this file to account (see sockets.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.end_to_end.alternatives import Measured
from benchmarks.end_to_end.results import Summary
from benchmarks.end_to_end.ways import Answered
from benchmarks.link import Conditions, Trace

RATES_MBPS = (10.0, 50.0, 100.0, 1000.0)
RTTS_MS = (1.0, 10.0, 30.0, 60.0)
# HTTP's, the websocket's or gRPC's headers and framing, TLS left out: too little to matter at any rate above.
_HEADER_BYTES = 300


@dataclass(frozen=True, slots=True)
class Link:
    """A link by name: conditions of each direction."""

    name: str
    up: Conditions
    down: Conditions

    @classmethod
    def symmetric(cls, rate_mbps: float | None, rtt_ms: float) -> Link:
        rate = "no limit" if rate_mbps is None else f"{rate_mbps:g} Mbit/s"
        way = Conditions(rate_mbps=rate_mbps, delay_ms=rtt_ms / 2)
        return cls(f"{rate}, {rtt_ms:g} ms", way, way)

    @classmethod
    def traced(cls, name: str, up: Trace, rtt_ms: float) -> Link:
        """The uplink is the trace; the answer is small, and comes back over a link of its mean."""
        mean = max(float(up.values.mean()), 1.0)
        return cls(name, Conditions(up, rtt_ms / 2), Conditions(mean, rtt_ms / 2))


def grid() -> list[Link]:
    return [Link.symmetric(rate, rtt) for rate in RATES_MBPS for rtt in RTTS_MS]


@dataclass(frozen=True, slots=True)
class Driven:
    """A robot on a link. latency: of the answers that came; None when none did. hz: answers a second.

    fresh: share of control ticks that had a new action no older than asked. lost: calls that missed their deadline.
    """

    latency: Summary | None
    hz: float
    fresh: float
    lost: int

    @property
    def lost_share(self) -> float:
        """Of all calls; 0 without any."""
        answered = 0 if self.latency is None else self.latency.n
        return self.lost / max(1, answered + self.lost)


@dataclass(frozen=True, slots=True)
class Driving:
    """How the robot is driven: one call in flight, a camera frame each control period, the newest frame wins.

    max_age_s: oldest frame that an action may come from when it is executed. deadline_s: then a call is given up.
    """

    control_hz: float = 5.0
    max_age_s: float = 0.4
    deadline_s: float = 3.0
    duration_s: float = 20.0


def arrives(answer: Answered, link: Link, start: float) -> float:
    """When the action is there, of a frame that is worked on from `start`; infinity when the link carries nothing."""
    if not answer.up_bytes:
        return start + answer.total_ms / 1e3
    sent = _crosses(link.up, start + answer.robot_ms / 1e3, answer.up_bytes)
    answered = sent + (answer.server_ms + answer.wire_ms) / 1e3
    return _crosses(link.down, answered, answer.down_bytes)


def _crosses(conditions: Conditions, start: float, size: int) -> float:
    if not math.isfinite(start):
        return math.inf
    left = conditions.finish(start, size + _HEADER_BYTES, 0.0)
    return left + conditions.delay_s(left, 0.0) if math.isfinite(left) else math.inf


def latency_ms(way: Measured, link: Link) -> float:
    """Median over the answers that were measured, each with this link in between."""
    return Summary.of([arrives(answer, link, 0.0) * 1e3 for answer in way.answers]).p50


def wire_ms(way: Measured, link: Link) -> float:
    """Median of what is not computed, each answer with this link in between."""
    return Summary.of(
        [arrives(answer, link, 0.0) * 1e3 - answer.robot_ms - answer.server_ms for answer in way.answers]
    ).p50


def drive(answers: Sequence[Answered], link: Link, driving: Driving) -> Driven:
    """Simulate a robot; the answers that were measured are taken in turn."""
    period, t, used, number, lost = 1 / driving.control_hz, 0.0, -1, 0, 0
    latencies: list[float] = []
    fresh: set[int] = set()
    while t < driving.duration_s:
        frame = int(t / period + 1e-9)
        if frame <= used:
            t = (frame + 1) * period
            continue
        used, captured = frame, frame * period
        done = arrives(answers[number % len(answers)], link, t)
        number += 1
        if done - captured > driving.deadline_s:
            lost, t = lost + 1, captured + driving.deadline_s
            continue
        tick = math.ceil(done / period - 1e-9)
        if tick * period - captured <= driving.max_age_s + 1e-9:
            fresh.add(tick)
        latencies.append((done - captured) * 1e3)
        t = done
    ticks = driving.duration_s * driving.control_hz
    latency = Summary.of(latencies) if latencies else None
    return Driven(latency, len(latencies) / driving.duration_s, min(1.0, len(fresh) / ticks), lost)
