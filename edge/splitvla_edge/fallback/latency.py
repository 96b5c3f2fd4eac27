"""The latency model: from the last replies, how long a frame will take at a payload size that need not be theirs.

A reply says how long the server worked on it; the rest of the round trip is the network's. Sizes that differ give the
slope, milliseconds a byte; with it every remembered reply is moved to the size in question, and the 95th percentile of
those is the prediction. As long as only one size was seen, all of its network time is taken for transmission: that
is the most that a smaller payload can save. Once two were seen, the attribution is measured.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from splitvla_edge.fallback.messages import Chunk
from splitvla_shared.nouns import StageTimes

MIN_REPLIES = 8
_PER_RUNG = 8  # replies at each rung that the slope is fitted to
_SLOPE_MEMORY_S = 120.0  # after which a rung that was not sent again tells nothing about the link any more


@dataclass(frozen=True, slots=True)
class Sample:
    """One reply. age_ms: from the frame's capture to the finished action; network_ms and server_ms are parts of it."""

    wire_bytes: int
    age_ms: float
    network_ms: float
    server_ms: float

    @classmethod
    def of(cls, chunk: Chunk) -> Sample:
        return cls(
            max(1, chunk.wire_bytes),
            (chunk.finished_at - chunk.captured_at) * 1e3,
            chunk.stages.network_ms,
            server_ms(chunk.stages),
        )

    def at_size(self, wire_bytes: int, slope: float | None) -> float:
        """This reply's age_ms, had it been of another size. slope: ms a byte, None: all network time was bytes."""
        per_byte = self.network_ms / self.wire_bytes if slope is None else slope
        floor = self.age_ms - self.network_ms
        return max(floor, self.age_ms + per_byte * (wire_bytes - self.wire_bytes))


@dataclass(frozen=True, slots=True)
class Stages95:
    """95th percentiles over the remembered replies, ms."""

    total_ms: float
    network_ms: float
    server_ms: float


class LatencyModel:
    """Owned by the fallback machine. Mutable state: the last replies, and the last ones at each rung."""

    def __init__(self, window: int = 32) -> None:
        self._samples: deque[Sample] = deque(maxlen=window)
        self._by_rung: dict[int, tuple[float, deque[Sample]]] = {}
        self._slope: float | None = None
        self._predicted: dict[int, float] = {}  # by size, until the next reply

    def add(self, now: float, chunk: Chunk) -> Sample:
        """Learn from a reply that was met; what was missed is no sample."""
        sample = Sample.of(chunk)
        self._samples.append(sample)
        self._predicted.clear()
        _, samples = self._by_rung.get(chunk.rung, (now, deque(maxlen=_PER_RUNG)))
        samples.append(sample)
        self._by_rung[chunk.rung] = (now, samples)
        for rung in [rung for rung, (at, _) in self._by_rung.items() if now - at > _SLOPE_MEMORY_S]:
            del self._by_rung[rung]
        slope = _fit([_middle(samples) for _, samples in self._by_rung.values()])
        # Rungs are not sent at the same time, and the link changes: no byte takes longer than this rung's take now.
        self._slope = None if slope is None else min(slope, _per_byte(samples))
        return sample

    def ready(self) -> bool:
        return len(self._samples) >= MIN_REPLIES

    def measured(self) -> bool:
        """Whether the slope comes from more than one size."""
        return self._slope is not None

    def predict_ms(self, wire_bytes: int) -> float | None:
        """p95 of a frame's age at arrival at this size; None with fewer than eight replies."""
        if not self.ready():
            return None
        if wire_bytes not in self._predicted:
            self._predicted[wire_bytes] = p95([s.at_size(wire_bytes, self._slope) for s in self._samples])
        return self._predicted[wire_bytes]

    def saving_ms(self, larger: int, smaller: int) -> float:
        """Transmission time between two sizes: measured, or the most that it can be."""
        if self._slope is not None:
            return self._slope * (larger - smaller)
        if not self._samples:
            return 0.0
        return _per_byte(self._samples) * (larger - smaller)

    def stages(self) -> Stages95 | None:
        """None with fewer than eight replies."""
        if not self.ready():
            return None
        return Stages95(
            p95([sample.age_ms for sample in self._samples]),
            p95([sample.network_ms for sample in self._samples]),
            p95([sample.server_ms for sample in self._samples]),
        )


def server_ms(stages: StageTimes) -> float:
    return stages.decode_payload_ms + stages.queue_ms + stages.prefill_ms + stages.decode_ms


def p95(values: list[float]) -> float:
    """By nearest rank."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def _middle(samples: deque[Sample]) -> tuple[float, float]:
    """Median bytes and network time of the replies at one rung."""
    return _median([s.wire_bytes for s in samples]), _median([s.network_ms for s in samples])


def _per_byte(samples: deque[Sample]) -> float:
    """The most that a byte takes, ms: as if all network time were transmission."""
    return max(0.0, _median([s.network_ms / s.wire_bytes for s in samples]))


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _fit(points: list[tuple[float, float]]) -> float | None:
    """Least squares through (bytes, ms), never below zero; None while the sizes do not differ by a tenth."""
    if len(points) < 2 or max(points)[0] < 1.1 * min(points)[0]:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return max(0.0, sum((x - mean_x) * (y - mean_y) for x, y in points) / spread)
