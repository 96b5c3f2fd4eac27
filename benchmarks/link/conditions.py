"""What one direction of a link does at the moment; a frozen value that is exchanged while the link runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.link.traces import Trace


@dataclass(frozen=True, slots=True)
class Bursts:
    """Every `every_s` seconds, for `length_s`, everything takes `extra_ms` longer; the first burst comes at the end."""

    every_s: float
    length_s: float
    extra_ms: float

    def extra_s(self, t: float) -> float:
        return self.extra_ms / 1e3 if t % self.every_s >= self.every_s - self.length_s else 0.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """One direction of a link.

    rate_mbps: a number, a trace, or None for no limit. delay_ms: one way, a number or a trace. jitter_ms: the sigma of
    what is added to the delay (half a normal distribution, drawn anew every 10 ms; TCP keeps its order, so nothing
    overtakes). loss: share of 1448-byte packets that are lost, each of which costs rto_ms, and so does everything
    behind it. closed: nothing passes; what was sent waits, and after the link's return for its next retransmission, at
    rto_ms, 3, 7, 15 ... times that from when it got stuck. corrupt, duplicate: share of segments of which a bit is
    flipped, or which come twice. buffer_bytes: what a connection may have waiting before its sender is pushed back.

    Not modelled: TCP's slow start and congestion window; the queue is first in, first out.
    """

    rate_mbps: float | Trace | None = None
    delay_ms: float | Trace = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    rto_ms: float = 200.0
    bursts: Bursts | None = None
    closed: bool = False
    corrupt: float = 0.0
    duplicate: float = 0.0
    buffer_bytes: int = 256 * 1024

    def __post_init__(self) -> None:
        if isinstance(self.rate_mbps, float | int) and not self.rate_mbps > 0:
            raise ValueError(f"rate_mbps is {self.rate_mbps}; expected above 0, or closed=True for a link that is down")
        for name in ("jitter_ms", "rto_ms"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not isinstance(self.delay_ms, Trace) and not 0 <= self.delay_ms < math.inf:
            raise ValueError(f"delay_ms is {self.delay_ms}; expected 0 or more")
        for name in ("loss", "corrupt", "duplicate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0..1")
        if self.buffer_bytes < 1:
            raise ValueError(f"buffer_bytes is {self.buffer_bytes}; expected 1 or more")

    def finish(self, start: float, size: float, since: float) -> float:
        """When the last of `size` bytes has left that begin at `start`; a trace begins at `since`."""
        if self.closed:
            return math.inf
        if self.rate_mbps is None:
            return start
        if isinstance(self.rate_mbps, Trace):
            trace = self.rate_mbps
            return max(start, since + trace.time_of(trace.bytes_by(start - since) + size))
        return start + size * 8e-6 / self.rate_mbps

    def carried(self, start: float, end: float, since: float) -> float:
        """Bytes that a busy link carries from `start` to `end`."""
        if self.closed:
            return 0.0
        if self.rate_mbps is None:
            return math.inf if end > start else 0.0
        if isinstance(self.rate_mbps, Trace):
            return self.rate_mbps.bytes_by(end - since) - self.rate_mbps.bytes_by(start - since)
        return (end - start) * self.rate_mbps * 1e6 / 8

    def delay_s(self, t: float, since: float) -> float:
        """On the way at `t`, without jitter."""
        fixed = self.delay_ms.at(t - since) if isinstance(self.delay_ms, Trace) else self.delay_ms
        return fixed / 1e3 + (self.bursts.extra_s(t - since) if self.bursts else 0.0)
