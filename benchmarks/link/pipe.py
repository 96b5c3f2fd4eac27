"""One direction of a link on simulated time: segments go in, deliveries come out. No clock, no socket, no thread.

A segment waits its turn, is put on the link at its rate, and is on its way for the delay. Flows (connections) share
the rate, first in, first out; within a flow nothing overtakes, as in TCP.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from benchmarks.link.conditions import Conditions

T = TypeVar("T")

_JITTER_HOLD_S = 0.01  # jitter is drawn this often: packets close together meet the same queues
_PACKET_BYTES = 1448


@dataclass(frozen=True, slots=True)
class Delivery(Generic[T]):
    """A segment at the far end at `at`. corrupt: one of its bits is wrong. copies: how often it came."""

    at: float
    flow: int
    size: int
    payload: T
    corrupt: bool = False
    copies: int = 1


@dataclass(slots=True)
class _Segment(Generic[T]):
    flow: int
    size: int
    payload: T
    earliest: float
    left: float


class Pipe(Generic[T]):
    """Mutable state: the two queues, the conditions, and a seeded generator. `now` never falls from call to call."""

    def __init__(self, conditions: Conditions | None = None, *, seed: int = 0, now: float = 0.0) -> None:
        """`now` is when the conditions begin, traces and bursts included."""
        self.conditions = conditions or Conditions()
        self._since = now
        self._random = random.Random(seed)
        self._waiting: deque[_Segment[T]] = deque()
        self._flying: list[tuple[float, int, Delivery[T]]] = []
        self._pushed = 0
        self._free_at = -math.inf
        self._held: dict[int, int] = {}
        self._last: dict[int, float] = {}
        self._stuck_since: dict[int, float] = {}
        self._not_before: dict[int, float] = {}
        self._jitter_until, self._jitter_s = -math.inf, 0.0

    def push(self, now: float, flow: int, size: int, payload: T) -> None:
        """A segment of `size` bytes is sent. Nothing is refused: see `room`."""
        if self.conditions.closed:
            self._stuck_since.setdefault(flow, now)
        self._waiting.append(_Segment(flow, size, payload, now, float(size)))
        self._held[flow] = self._held.get(flow, 0) + size

    def pop(self, now: float) -> list[Delivery[T]]:
        """What has arrived by `now`, in the order of arrival."""
        self._advance(now)
        arrived = []
        while self._flying and self._flying[0][0] <= now:
            arrived.append(heapq.heappop(self._flying)[2])
        return arrived

    def next_at(self, now: float) -> float:
        """When the next `pop` has something to do, as things stand; infinity while nothing moves."""
        self._advance(now)
        first = self._flying[0][0] if self._flying else math.inf
        return min(first, self._head_finish() if self._waiting else math.inf)

    def waiting_bytes(self, flow: int) -> int:
        """What this flow has sent that is not yet on the link."""
        return self._held.get(flow, 0)

    def room(self, now: float, flow: int) -> int:
        """Bytes that this flow may send now without overfilling its buffer."""
        self._advance(now)
        return max(0, self.conditions.buffer_bytes - self.waiting_bytes(flow))

    def set(self, now: float, conditions: Conditions) -> None:
        """From now on. What is on its way arrives as it was; what is half on the link goes on at the new rate."""
        self._advance(now)
        before, since = self.conditions, self._since
        if self._waiting:
            head = self._waiting[0]
            start = max(self._free_at, head.earliest)
            head.left = max(0.0, head.left - before.carried(start, now, since)) if now > start else head.left
        self._free_at = max(self._free_at, now)
        if conditions.closed and not before.closed:
            for segment in self._waiting:
                self._stuck_since.setdefault(segment.flow, now)
        elif before.closed and not conditions.closed:
            for flow, stuck_since in self._stuck_since.items():
                self._not_before[flow] = _retransmission(stuck_since, conditions.rto_ms / 1e3, now)
            self._stuck_since.clear()
        if (conditions.rate_mbps, conditions.delay_ms, conditions.bursts) != (
            before.rate_mbps,
            before.delay_ms,
            before.bursts,
        ):
            self._since = now
        self.conditions = conditions

    def drop(self, now: float, flow: int, keep_bytes: int = 0, which: Callable[[T], bool] | None = None) -> int:
        """Take back what this flow has waiting beyond its first keep_bytes (a socket's buffer); the bytes gone."""
        self._advance(now)
        kept: deque[_Segment[T]] = deque()
        ahead = gone = 0
        for segment in self._waiting:
            if segment.flow == flow and ahead >= keep_bytes and (which is None or which(segment.payload)):
                gone += segment.size
                continue
            ahead += segment.size if segment.flow == flow else 0
            kept.append(segment)
        self._waiting = kept
        if flow in self._held:
            self._held[flow] -= gone
        return gone

    def forget(self, now: float, flow: int) -> None:
        """The connection is gone: nothing of it arrives any more."""
        self.drop(now, flow)
        self._flying = [entry for entry in self._flying if entry[2].flow != flow]
        heapq.heapify(self._flying)
        for table in (self._held, self._last, self._stuck_since, self._not_before):
            table.pop(flow, None)

    def _advance(self, now: float) -> None:
        """Put on the link what has been put on it by `now`."""
        while self._waiting and (finish := self._head_finish()) <= now:
            segment = self._waiting.popleft()
            self._held[segment.flow] -= segment.size
            self._free_at = finish
            self._fly(finish, segment)

    def _head_finish(self) -> float:
        head = self._waiting[0]
        return self.conditions.finish(max(self._free_at, head.earliest), head.left, self._since)

    def _fly(self, left_at: float, segment: _Segment[T]) -> None:
        conditions, flow = self.conditions, segment.flow
        arrival = left_at + conditions.delay_s(left_at, self._since) + self._jitter(left_at)
        packets = math.ceil(segment.size / _PACKET_BYTES)
        if conditions.loss and self._random.random() >= (1 - conditions.loss) ** packets:
            arrival += conditions.rto_ms / 1e3
        arrival = max(arrival, self._last.get(flow, -math.inf), self._not_before.get(flow, -math.inf))
        self._last[flow] = arrival
        delivery = Delivery(
            arrival, flow, segment.size, segment.payload,
            corrupt=conditions.corrupt > 0 and self._random.random() < conditions.corrupt,
            copies=1 + (conditions.duplicate > 0 and self._random.random() < conditions.duplicate),
        )  # fmt: skip
        self._pushed += 1
        heapq.heappush(self._flying, (arrival, self._pushed, delivery))

    def _jitter(self, t: float) -> float:
        if not self.conditions.jitter_ms:
            return 0.0
        if t >= self._jitter_until:
            self._jitter_until = t + _JITTER_HOLD_S
            self._jitter_s = abs(self._random.gauss(0.0, self.conditions.jitter_ms / 1e3))
        return self._jitter_s


def _retransmission(stuck_since: float, rto_s: float, now: float) -> float:
    """The first retransmission at or after `now`; the time-out doubles each time (RFC 6298)."""
    if rto_s <= 0:
        return now
    at, wait = stuck_since + rto_s, rto_s
    while at < now:
        wait *= 2
        at += wait
    return at
