"""The account of replies: which answers count, which one is being executed, and what each call teaches."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from splitvla_edge.fallback.messages import Asked, Chunk, Miss, Outcome, Reply
from splitvla_edge.fallback.settings import FallbackSettings

MAX_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Lesson:
    """How a call ended, for the latency model. chunk: only when it was met in time. rung: None when nobody knows."""

    outcome: Outcome
    rung: int | None
    chunk: Chunk | None = None


class Account:
    """Owned by the fallback machine. Mutable state: the public fields, and when actions were executed.

    chunk, cursor: the answer being executed and its next action. flight: the call under way. lost: the answer that was
    due is known not to come. streak, misses: calls that were met, or not, in a row. usable_after: earliest capture time
    that counts. calls: how many began in this epoch.
    """

    def __init__(self, settings: FallbackSettings, dims: int, accept_clipped: bool) -> None:
        self._settings, self._dims, self._accept_clipped = settings, dims, accept_clipped
        self.epoch = 1
        self.highest_sequence = 0
        self._executed: deque[float] = deque(maxlen=MAX_CHUNK)
        self.begin_epoch(-math.inf)

    def begin_epoch(self, now: float) -> None:
        """Forget every reply; what is asked from now on counts."""
        self.chunk: Chunk | None = None
        self.cursor = 0
        self.flight: Asked | None = None
        self.flight_ends_at = -math.inf
        self.met_at = -math.inf
        self.lost = False
        self.streak = self.misses = self.calls = 0
        self.non_finite = 0
        self.received_invalid = False
        self.usable_after = now
        self._newest_capture = -math.inf
        self._dead_sequence = self.highest_sequence

    def absorb(self, now: float, replies: tuple[Reply, ...]) -> Iterator[Lesson]:
        """Bring the account up to date: replies in their order, then expiry. Yields what the calls teach."""
        self.received_invalid = False
        for reply in replies:
            if (lesson := self._absorb_one(now, reply)) is not None:
                yield lesson
        if self.flight is not None and not now <= self.flight_ends_at:
            yield self._lose(self.flight.sequence, Outcome.MISSED)

    def drop_chunk(self) -> None:
        self.chunk = None

    def has_action(self) -> bool:
        return self.chunk is not None and self.cursor < len(self.chunk.actions)

    def note_executed(self, now: float) -> None:
        """An action, of whichever policy, was sent to the robot."""
        self._executed.append(now)

    def since_executed(self, at: float) -> int:
        """How many actions were executed after `at`."""
        count = 0
        for executed in reversed(self._executed):  # they rise: few are newer than a frame
            if executed <= at:
                break
            count += 1
        return count

    def last_executed_at(self) -> float | None:
        return self._executed[-1] if self._executed else None

    def _absorb_one(self, now: float, reply: Reply) -> Lesson | None:
        self.highest_sequence = max(self.highest_sequence, reply.sequence)
        if isinstance(reply, Miss):
            if 0 < reply.sequence <= self._dead_sequence:
                return None  # it has expired before, and counted then; or a later call was answered since
            return self._lose(reply.sequence, reply.outcome)
        if reply.epoch != self.epoch or reply.sequence <= self._dead_sequence:
            return None
        if isinstance(reply, Asked):
            self.flight = reply
            self.calls += 1
            # No call may keep the machine waiting for longer than the longest deadline.
            self.flight_ends_at = min(now + self._settings.deadline_max_ms / 1e3, reply.deadline_at)
            return None
        return self._absorb_chunk(now, reply)

    def _lose(self, sequence: int, outcome: Outcome) -> Lesson:
        """A call gave no action: its sequence is dead, and a late reply can never be taken for a newer one."""
        self._dead_sequence = max(self._dead_sequence, sequence)
        self.streak = 0
        self.misses += 1
        self.lost = True
        rung = None
        if self.flight is not None and self.flight.sequence <= self._dead_sequence:
            rung, self.flight = self.flight.rung, None
        return Lesson(outcome, rung)

    def _absorb_chunk(self, now: float, chunk: Chunk) -> Lesson | None:
        flight, self._dead_sequence = self.flight, chunk.sequence  # answered once
        if flight is not None and flight.sequence <= chunk.sequence:
            self.flight = None
            if flight.sequence == chunk.sequence and chunk.finished_at > flight.deadline_at:
                self._lose(chunk.sequence, Outcome.MISSED)
                return Lesson(Outcome.MISSED, flight.rung)
        finite = all(map(math.isfinite, itertools.chain.from_iterable(chunk.actions)))
        self.non_finite = 0 if finite else self.non_finite + 1
        if not (finite and self._well_formed(now, chunk)):
            self.received_invalid = True
            self.streak = 0
            return None
        self.met_at, self.lost = chunk.finished_at, False
        self.streak += 1
        self.misses = 0
        self._newest_capture = chunk.captured_at
        if chunk.captured_at >= self.usable_after:
            # Actions executed since the frame was taken are the chunk's past. A single action is for any moment.
            self.chunk = chunk
            self.cursor = self.since_executed(chunk.captured_at) if len(chunk.actions) > 1 else 0
        return Lesson(Outcome.MET, chunk.rung, chunk)

    def _well_formed(self, now: float, chunk: Chunk) -> bool:
        """Also false for a frame from the future, and for one older than its predecessor: time ran backwards."""
        shaped = 1 <= len(chunk.actions) <= MAX_CHUNK and all(len(row) == self._dims for row in chunk.actions)
        in_order = self._newest_capture <= chunk.captured_at <= now
        return shaped and in_order and (self._accept_clipped or chunk.clipped == 0)
