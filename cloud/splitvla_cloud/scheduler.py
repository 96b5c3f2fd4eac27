"""Which frames the GPU takes next: a bounded queue in which a session's newest frame wins, and what it says of load.

Rules of this file: no clock and no thread; `now` and deadlines are monotonic seconds of this machine. A frame that
leaves the queue without being taken leaves it with the error that its caller is told. The earliest deadline goes first,
but a session that has had its turn does not overtake one that was waiting then: it waits for at most one frame of each
other session, however fast and urgent that one sends, and it goes on waiting when its frame ends unserved and the next
one comes. A frame that will hardly be in time, as passes go, lets those go first that will: it is tried when nothing
better is there, and nobody waits for it.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from splitvla_cloud.admission import FREE, PassCost, choose
from splitvla_shared.errors import DeadlineMissed, LinkError, Overloaded, Superseded

T = TypeVar("T")

SESSION_WINDOW_S = 10.0
BUSY_WINDOW_S = 1.0


class _WeaklyReferable:
    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True, eq=False)
class Ticket(_WeaklyReferable, Generic[T]):
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


@dataclass(slots=True)
class _Session:
    """newest: highest sequence so far. seen: when it came. turn: number of the last take that served this session.

    since: takes when it began to wait for a turn, whatever became of its frames since; None when it has had one.
    """

    newest: int
    seen: float
    turn: int = 0
    since: int | None = None


class FrameQueue(Generic[T]):
    """At most one queued frame a session, at most `limit` in all.

    Owned by whoever holds the lock around it: it has none of its own.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queued: dict[int, Ticket[T]] = {}
        self._sessions: OrderedDict[int, _Session] = OrderedDict()  # the oldest arrival first
        self._turns = 0

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

    def take(
        self,
        now: float,
        room: int = 1,
        cost: PassCost = FREE,
        running: Sequence[float] = (),
        wait_s: float = math.inf,
    ) -> tuple[list[Ticket[T]], list[Dropped[T]]]:
        """At most `room` frames to serve together, removed, and those dropped because their deadline can't be met.

        cost: of a pass with so many new frames, and of answers. running: until when the next pass must have ended, for
        each of the frames that are being served. wait_s: until these are done if no frame comes in.
        """
        dropped = self._drop_expired(now, cost.floor(now))
        if not self._queued or room < 1:  # as before most passes: nothing to weigh while the GPU waits
            return [], dropped
        rest = cost.rest(1)
        order = self._order(now + cost.usual(now) + rest)
        taken = order[: choose([ticket.deadline - rest for ticket in order], now, room, cost, running, wait_s)]
        for ticket in taken:
            self._turns += 1
            if known := self._sessions.get(ticket.session):
                known.turn, known.since = self._turns, None
            del self._queued[ticket.session]
        return taken, dropped

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
            session, known = next(iter(self._sessions.items()))
            if now - known.seen <= SESSION_WINDOW_S:
                break
            del self._sessions[session]
        return len(self._sessions)

    def _note_arrival(self, ticket: Ticket[T], now: float) -> int:
        self.sessions(now)  # forgets the silent ones, so that the table stays as small as the window
        known = self._sessions.setdefault(ticket.session, _Session(ticket.sequence, now))
        known.newest, known.seen = max(known.newest, ticket.sequence), now
        self._sessions.move_to_end(ticket.session)
        known.since = self._turns if known.since is None else known.since
        return known.newest

    def _order(self, safe: float) -> list[Ticket[T]]:
        """Those first whose deadline lies beyond `safe`; among them those that may overtake, by deadline and arrival.

        Without the first rule an overloaded GPU would spend itself on frames that are about to be late: the most
        urgent one is taken, fails by a hair, and meanwhile the next one has become the most urgent.
        """
        hopeful = [ticket for ticket in self._queued.values() if ticket.deadline > safe]
        longest = min((self._since(ticket) for ticket in hopeful or self._queued.values()), default=0)

        def rank(ticket: Ticket[T]) -> tuple[bool, bool, float, float]:
            known = self._sessions.get(ticket.session)  # forgotten when it has long been silent
            overtakes = known is not None and known.turn > longest
            return ticket.deadline <= safe, overtakes, ticket.deadline, ticket.queued_at

        return sorted(self._queued.values(), key=rank)

    def _since(self, ticket: Ticket[T]) -> int:
        known = self._sessions.get(ticket.session)
        return self._turns if known is None or known.since is None else known.since

    def _drop_expired(self, now: float, floor_s: float = 0.0) -> list[Dropped[T]]:
        expired = [ticket for ticket in self._queued.values() if ticket.deadline <= now + floor_s]
        for ticket in expired:
            del self._queued[ticket.session]
        return [Dropped(ticket, DeadlineMissed(_expired(ticket, now, floor_s))) for ticket in expired]


def _expired(ticket: Ticket[T], now: float, floor_s: float) -> str:
    waited_ms, left_ms = (now - ticket.queued_at) * 1000, (ticket.deadline - now) * 1000
    if left_ms > 0:
        return (
            f"frame {ticket.sequence}: {left_ms:.0f} ms were left after {waited_ms:.0f} ms in the queue, the backbone "
            f"takes {floor_s * 1000:.0f} ms; it never reached the GPU"
        )
    return (
        f"frame {ticket.sequence}: its deadline passed in the queue after {waited_ms:.0f} ms; it never reached the GPU"
    )


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

    def running_s(self, now: float) -> float:
        """How long the running work has run; 0 when none runs."""
        return 0.0 if self._since is None else now - self._since

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
