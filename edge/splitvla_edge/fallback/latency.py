"""The latency model: from the last replies, how long a frame will take at a payload size that need not be theirs.

A reply says how long the server worked on it; the rest of the round trip is the network's. When the size changes, the
replies just before and just after give the slope, milliseconds a byte; with it every remembered reply is moved to the
size in question, and the 95th percentile of those is the prediction. The slope holds as long as the size in use takes
no longer than it did then; a link that has changed, or of which only one size was seen, may owe all of its network time
to bytes: that is the most that a smaller payload saves, and the worst that a larger one costs.

A reply also says how many requests wait at the server: the next frame stands behind them, so many times what an answer
takes there. What exceeds the usual wait is added to every prediction. A server that answers several at once makes them
wait less than that: by how much, the waits of the next replies tell.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from splitvla_edge.fallback.messages import Chunk

MIN_REPLIES = 8
_RUN = 8  # replies of one rung that its median is taken of
_ADJACENT_S = 3.0  # replies of two sizes compare when they are no further apart: the link changes
_REFUTED_MS = 20.0
_SLOPE_MEMORY_S = 120.0
_QUEUE_MEMORY = 0.8  # of each reply at the next one: about five count


@dataclass(frozen=True, slots=True)
class Sample:
    """One reply. age_ms: from the frame's capture to the finished action; network_ms is a part of it.

    queue_ms: how long it waited at the server.
    """

    wire_bytes: int
    age_ms: float
    network_ms: float
    queue_ms: float

    @classmethod
    def of(cls, chunk: Chunk) -> Sample:
        return cls(
            max(1, chunk.wire_bytes),
            (chunk.finished_at - chunk.captured_at) * 1e3,
            chunk.stages.network_ms,
            chunk.stages.queue_ms,
        )

    def at_size(self, wire_bytes: int, slope: float | None) -> float:
        """This reply's age_ms, had it been of another size. slope: ms a byte, None: all network time was bytes."""
        most = self.network_ms / self.wire_bytes
        per_byte = slope if slope is not None and slope < most else most
        ms, floor = self.age_ms + per_byte * (wire_bytes - self.wire_bytes), self.age_ms - self.network_ms
        return ms if ms > floor else floor


class LatencyModel:
    """Owned by the fallback machine.

    Mutable state: the last replies, those at the present rung, the slope, and what the server's queue foretells.
    """

    def __init__(self, window: int = 32) -> None:
        self._samples: deque[Sample] = deque(maxlen=window)
        self._run: deque[Sample] = deque(maxlen=_RUN)  # at the rung of the last reply
        self._run_length = 0
        self._rung, self._at = 0, -math.inf
        self._before: tuple[int, float, float] | None = None  # rung, bytes and ms of the run before, while it compares
        self._slope: float | None = None
        self._measured_at = -math.inf
        self._reference: dict[int, float] = {}  # network ms of the two rungs when the slope was measured
        self._predicted: dict[int, float] = {}  # by size, until the next reply
        self._foretold_ms = self._queue_extra_ms = 0.0  # of the next reply, if requests are answered one by one
        self._waited_ms, self._all_foretold_ms = 0.0, 0.0  # what became of it, over the last replies

    def add(self, now: float, chunk: Chunk) -> Sample:
        """Learn from a reply that was met; what was missed is no sample."""
        sample = Sample.of(chunk)
        if chunk.rung != self._rung or not self._run:
            self._before = (self._rung, *_middle(self._run)) if self._run and now - self._at <= _ADJACENT_S else None
            self._run.clear()
            self._rung, self._run_length = chunk.rung, 0
        self._samples.append(sample)
        self._run.append(sample)
        self._run_length, self._at = self._run_length + 1, now
        self._predicted.clear()
        self._learn_slope(now)
        self._learn_queue(chunk)
        return sample

    def interrupt(self) -> None:
        """A call was missed: replies before and after it do not compare, because the link may have changed."""
        self._at, self._before = -math.inf, None
        self._foretold_ms = self._queue_extra_ms = 0.0
        self._predicted.clear()

    def _learn_slope(self, now: float) -> None:
        size, ms = _middle(self._run)
        if self._before is not None and self._run_length <= _RUN:
            rung, other_size, other_ms = self._before
            if max(size, other_size) >= 1.1 * min(size, other_size):
                slower_by_ms = ms - other_ms if size < other_size else other_ms - ms  # the smaller one
                self._slope = max(0.0, (ms - other_ms) / (size - other_size)) if slower_by_ms <= _REFUTED_MS else None
                self._measured_at, self._reference = now, {rung: other_ms, self._rung: ms}
        longer_ms = ms - self._reference.get(self._rung, -math.inf)
        if longer_ms > _REFUTED_MS or now - self._measured_at > _SLOPE_MEMORY_S:
            self._slope = None

    def _learn_queue(self, chunk: Chunk) -> None:
        """What the last reply foretold has come; what this one foretells is for the next."""
        if self._foretold_ms > 0.0:
            self._waited_ms = _QUEUE_MEMORY * self._waited_ms + min(chunk.stages.queue_ms, self._foretold_ms)
            self._all_foretold_ms = _QUEUE_MEMORY * self._all_foretold_ms + self._foretold_ms
        self._foretold_ms = chunk.hints.queued * (chunk.stages.prefill_ms + chunk.stages.decode_ms)
        if self._foretold_ms == 0.0:
            self._queue_extra_ms = 0.0
            return
        share = self._waited_ms / self._all_foretold_ms if self._all_foretold_ms > 0.0 else 1.0
        usual_ms = p95([sample.queue_ms for sample in self._samples])
        self._queue_extra_ms = max(0.0, share * self._foretold_ms - usual_ms)

    def ready(self) -> bool:
        return len(self._samples) >= MIN_REPLIES

    def measured(self) -> bool:
        """Whether the slope is known, from two sizes, and still holds."""
        return self._slope is not None

    def predict_ms(self, wire_bytes: int) -> float | None:
        """p95 of a frame's age at arrival at this size; None with fewer than eight replies."""
        if not self.ready():
            return None
        if wire_bytes not in self._predicted:
            usual_ms = p95([each.at_size(wire_bytes, self._slope) for each in self._samples])
            self._predicted[wire_bytes] = usual_ms + self._queue_extra_ms
        return self._predicted[wire_bytes]

    def saving_ms(self, larger: int, smaller: int) -> float:
        """Transmission time between two sizes: measured, or the most that it can be."""
        if not self._samples:
            return 0.0
        alike = [s for s in self._samples if s.wire_bytes >= 0.9 * larger][-_RUN:] or self._run
        most = _median([s.network_ms / s.wire_bytes for s in alike])
        return (most if self._slope is None else min(self._slope, most)) * (larger - smaller)


def p95(values: list[float]) -> float:
    """By nearest rank."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def _middle(samples: deque[Sample]) -> tuple[float, float]:
    """Median bytes and network time of the replies at one rung."""
    return _median([s.wire_bytes for s in samples]), _median([s.network_ms for s in samples])


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
