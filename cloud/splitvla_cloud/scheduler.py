"""Which frame the GPU takes next: a bounded queue in which a session's newest frame wins, and what it says of load.

Rules of this file: no clock and no thread; `now` and deadlines are monotonic seconds of this machine. A frame that
leaves the queue without being taken leaves it with the error that its caller is told.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from splitvla_shared.errors import DeadlineMissed, LinkError, Overloaded, Superseded

T = TypeVar("T")

SESSION_WINDOW_S = 10.0
BUSY_WINDOW_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Ticket(Generic[T]):
    """A frame's place in the queue. Compared by identity: the work may hold arrays."""

    session: int
    sequence: int
    deadline: float
    queued_at: float
    work: T


@dataclass(frozen=True, slots=True)
class Dropped(Generic[T]):
    """A frame that leaves the queue unserved, and why."""

    ticket: Ticket[T]
    error: LinkError


class FrameQueue(Generic[T]):
    """At most one queued frame a session, at most `limit` in all; the earliest deadline is served first.

    Owned by whoever holds the lock around it: it has none of its own.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queued: dict[int, Ticket[T]] = {}
        # session -> (newest sequence, when it came), oldest arrival first
        self._sessions: OrderedDict[int, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._queued)

    def offer(self, ticket: Ticket[T], now: float) -> list[Dropped[T]]:
        """Admit `ticket` and return the frames that leave for it.

        Raises Superseded when the session already sent a newer frame, DeadlineMissed when it is too late, Overloaded
        when the queue is full; then nothing has left the queue.
        """
        newest = self._note_arrival(ticket, now)
        if ticket.sequence < newest:
            raise Superseded(f"frame {ticket.sequence}: frame {newest} of the same session came before it")
        if ticket.deadline <= now:
            raise DeadlineMissed(f"frame {ticket.sequence}: its deadline had passed when it reached the queue")
        dropped = self._drop_expired(now)
        if older := self._queued.pop(ticket.session, None):
            dropped.append(Dropped(older, Superseded(f"frame {older.sequence}: frame {newest} took its place")))
        elif len(self._queued) >= self._limit:
            # Nothing expired, or there would be room: no dropped frame is lost by raising here.
            raise Overloaded(f"frame {ticket.sequence}: {self._limit} frames wait for the GPU already; slow down")
        self._queued[ticket.session] = ticket
        return dropped

    def take(self, now: float) -> tuple[Ticket[T] | None, list[Dropped[T]]]:
        """The frame with the earliest deadline, removed, and the frames whose deadline has passed."""
        dropped = self._drop_expired(now)
        if not self._queued:
            return None, dropped
        ticket = min(self._queued.values(), key=lambda queued: (queued.deadline, queued.queued_at))
        return self._queued.pop(ticket.session), dropped

    def cancel(self, ticket: Ticket[T]) -> bool:
        """Forget a frame that nobody waits for any more; False when it is not queued."""
        if self._queued.get(ticket.session) is not ticket:
            return False
        del self._queued[ticket.session]
        return True

    def drain(self) -> list[Ticket[T]]:
        """Empty the queue."""
        tickets = list(self._queued.values())
        self._queued.clear()
        return tickets

    def sessions(self, now: float) -> int:
        """Sessions that sent a frame within the last SESSION_WINDOW_S."""
        while self._sessions:
            session, (_, seen) = next(iter(self._sessions.items()))
            if now - seen <= SESSION_WINDOW_S:
                break
            del self._sessions[session]
        return len(self._sessions)

    def _note_arrival(self, ticket: Ticket[T], now: float) -> int:
        self.sessions(now)  # forgets the silent ones, so that the table stays as small as the window
        known, _ = self._sessions.get(ticket.session, (ticket.sequence, now))
        newest = max(known, ticket.sequence)
        self._sessions[ticket.session] = (newest, now)
        self._sessions.move_to_end(ticket.session)
        return newest

    def _drop_expired(self, now: float) -> list[Dropped[T]]:
        expired = [ticket for ticket in self._queued.values() if ticket.deadline <= now]
        for ticket in expired:
            del self._queued[ticket.session]
        return [Dropped(ticket, DeadlineMissed(_expired(ticket, now))) for ticket in expired]


def _expired(ticket: Ticket[T], now: float) -> str:
    waited = (now - ticket.queued_at) * 1000
    return f"frame {ticket.sequence}: its deadline passed in the queue after {waited:.0f} ms; it never reached the GPU"


class BusyMeter:
    """Share of the last BUSY_WINDOW_S in which the GPU thread was at work. Owned like FrameQueue."""

    def __init__(self) -> None:
        self._spans: deque[tuple[float, float]] = deque()
        self._since: float | None = None

    def begin(self, now: float) -> None:
        self._since = now

    def end(self, now: float) -> None:
        if self._since is not None:
            self._spans.append((self._since, now))
        self._since = None
        self._forget(now)

    def share(self, now: float) -> float:
        """0..1."""
        self._forget(now)
        start = now - BUSY_WINDOW_S
        spans = [*self._spans, (self._since, now)] if self._since is not None else [*self._spans]
        busy = sum(until - max(since, start) for since, until in spans)
        return min(max(busy / BUSY_WINDOW_S, 0.0), 1.0)

    def _forget(self, now: float) -> None:
        while self._spans and self._spans[0][1] <= now - BUSY_WINDOW_S:
            self._spans.popleft()
