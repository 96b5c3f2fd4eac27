"""FrameQueue does what a slow and plain scheduler does that keeps everything and looks everything up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from hypothesis import example, given, settings
from hypothesis import strategies as st

from splitvla_cloud.admission import PassCost
from splitvla_cloud.scheduler import SESSION_WINDOW_S, FrameQueue, Ticket
from splitvla_shared.errors import DeadlineMissed, LinkError, Overloaded, Superseded

Leaving = set[tuple[int, type[LinkError]]]  # id of the ticket, and why


@dataclass(slots=True)
class Session:
    """What a session has done since it was last forgotten. arrivals, turns: when, counted in takes of anyone."""

    newest: int
    seen: float
    arrivals: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)


class Reference:
    """The rules of scheduler.py and admission.py, one after the other."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting: list[Ticket[str]] = []
        self.sessions: dict[int, Session] = {}
        self.taken = 0
        self.passes: list[tuple[int, float, float]] = []  # frames, seconds, when it ended; those that are believed
        self.doubted_the_last = False

    def offer(self, ticket: Ticket[str], now: float) -> Leaving | type[LinkError]:
        self.sessions = {n: known for n, known in self.sessions.items() if now - known.seen <= SESSION_WINDOW_S}
        known = self.sessions.setdefault(ticket.session, Session(ticket.sequence, now))
        known.newest, known.seen = max(known.newest, ticket.sequence), now
        known.arrivals.append(self.taken)
        if ticket.sequence < known.newest:
            return Superseded
        if ticket.deadline <= now:
            return DeadlineMissed
        leaving = self.expire(now)
        older = [other for other in self.waiting if other.session == ticket.session]
        if not older and len(self.waiting) == self.limit:
            return Overloaded
        for other in older:
            self.waiting.remove(other)
            leaving.add((id(other), Superseded))
        self.waiting.append(ticket)
        return leaving

    def take(self, now: float, room: int, running: Sequence[float]) -> tuple[list[Ticket[str]], Leaving]:
        recent = [(frames, seconds) for frames, seconds, ended in self.passes if frames and ended >= now - 2.0]
        alone = [] if any(frames == 1 for frames, _ in recent) else [self.cost(1)]
        least = min([*alone, *(seconds for _, seconds in recent)]) if recent else 0.0
        leaving = self.expire(now + least)
        shares = sorted(seconds / self.cost(frames) for frames, seconds in recent if self.cost(frames))
        spread = max(1.0, shares[int(0.9 * (len(shares) - 1))]) if shares else 1.0
        safe = now + self.cost(1) * spread
        hopeful = [ticket for ticket in self.waiting if ticket.deadline > safe]
        patient = [self.since(ticket) for ticket in hopeful or self.waiting]

        def rank(ticket: Ticket[str]) -> tuple[bool, bool, float, float]:
            turns = self.sessions[ticket.session].turns if ticket.session in self.sessions else []
            has_had_its_turn = any(turn >= since for turn in turns for since in patient)
            return ticket.deadline <= safe, has_had_its_turn, ticket.deadline, ticket.queued_at

        order = sorted(self.waiting, key=rank)
        deadlines = [ticket.deadline for ticket in order]
        sizes = range(1, min(room, len(order), self.share(len(order), room)) + 1)
        count = max(takewhile(lambda size: self.may_grow_to(size, deadlines, now, running, spread), sizes), default=0)
        for ticket in order[:count]:
            if known := self.sessions.get(ticket.session):
                known.turns.append(self.taken)
            self.taken += 1
            self.waiting.remove(ticket)
        return order[:count], leaving

    def passed(self, frames: int, seconds: float, now: float) -> None:
        """More than five times as long as expected is believed only after another such pass."""
        alike = [mean for number, mean in self.means().items() if number <= frames and bool(number) is bool(frames)]
        too_long = 0 < 5 * max(alike, default=0.0) < seconds
        self.doubted_the_last = too_long and not self.doubted_the_last
        if not self.doubted_the_last:
            self.passes.append((frames, seconds, now))

    def since(self, ticket: Ticket[str]) -> int:
        """Its session's first arrival that has not had its turn, counted in takes."""
        if (known := self.sessions.get(ticket.session)) is None:
            return self.taken
        return min(arrival for arrival in known.arrivals if arrival > max(known.turns, default=-1))

    def share(self, waiting: int, room: int) -> int:
        """So many at a time have all of them answered soonest on the average, a twentieth sooner than alone."""

        def mean_s(size: int) -> float:
            batches = [min(size, waiting - begun) for begun in range(0, waiting, size)]
            ends_s = [sum(map(self.cost, batches[: number + 1])) for number in range(len(batches))]
            return round(sum(count * end for count, end in zip(batches, ends_s, strict=True)) / waiting, 6)

        best = min(range(1, min(waiting, room) + 1), key=lambda size: (mean_s(size), -size), default=0)
        return best if best and mean_s(best) <= 0.95 * mean_s(1) else min(best, 1)

    def may_grow_to(
        self, size: int, deadlines: Sequence[float], now: float, running: Sequence[float], spread: float
    ) -> bool:
        """In time itself, and nobody late by it who was not before."""
        before, after = now + spread * self.cost(size - 1), now + spread * self.cost(size)
        if size > 1 and deadlines[size - 1] <= after:
            return False
        return not any(before <= end < after for end in [*running, *deadlines[: size - 1]])

    def cost(self, frames: int) -> float:
        """The dearest mean of those numbers of frames that are no larger."""
        return max((mean for number, mean in self.means().items() if number <= frames), default=0.0)

    def means(self) -> dict[int, float]:
        """Running means by number of frames."""
        means: dict[int, float] = {}
        for number, seconds, _ in self.passes:
            mean = means.get(number, seconds)
            means[number] = mean + 0.2 * (seconds - mean)
        return means

    def expire(self, before: float) -> Leaving:
        late = [ticket for ticket in self.waiting if ticket.deadline <= before]
        self.waiting = [ticket for ticket in self.waiting if ticket not in late]
        return {(id(ticket), DeadlineMissed) for ticket in late}


@dataclass(frozen=True, slots=True)
class Event:
    """passed: seconds since the last one. left: seconds to the deadline, or a pass's cost."""

    kind: str
    session: int
    number: int
    left: float
    passed: float


# Powers of two make sums exact and ties frequent; a silence beyond SESSION_WINDOW_S comes too.
_TIMES = st.sampled_from([0.0, 0.0, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0])
EVENTS = st.lists(
    st.builds(
        Event,
        st.sampled_from(["offer", "offer", "offer", "offer", "take", "take", "cancel", "pass"]),
        st.integers(0, 4),
        st.integers(0, 7),
        st.one_of(_TIMES, st.just(40.0), st.just(-0.125)),
        st.one_of(_TIMES, _TIMES, _TIMES, st.just(10.5)),
    ),
    max_size=80,
)


# All that wait will hardly be in time: who was not served yet goes first all the same.
_ALL_HARDLY = [
    *(Event("offer", 0, 0, 2.0, 0.0), Event("take", 0, 1, 0.0, 0.0)),
    *(Event("pass", 0, 1, 0.25, 0.0), Event("pass", 0, 1, 1.0, 0.0)),
    *(Event("offer", 0, 1, 0.5, 0.0), Event("offer", 1, 0, 0.5, 0.0), Event("take", 0, 1, 0.0, 0.125)),
]
# What a pass without a new frame took tells nothing of one with some.
_OF_ANOTHER_KIND = [
    *(Event("pass", 0, 0, 2.0, 0.0), Event("pass", 0, 1, 0.0625, 0.0), Event("pass", 0, 1, 0.5, 10.5)),
    *(Event("offer", 0, 0, 0.25, 0.0), Event("take", 0, 1, 0.0, 0.0)),
]


@example(events=_ALL_HARDLY, limit=2, running=[])
@example(events=_OF_ANOTHER_KIND, limit=1, running=[])
@given(events=EVENTS, limit=st.integers(1, 5), running=st.lists(st.sampled_from([0.25, 0.5, 1.0]), max_size=2))
@settings(max_examples=300)
def test_random_arrivals_cancels_and_deadlines_go_as_in_the_reference_scheduler(
    events: list[Event], limit: int, running: list[float]
) -> None:
    queue: FrameQueue[str] = FrameQueue(limit)
    costs, reference = PassCost(), Reference(limit)
    offered: list[Ticket[str]] = []
    now = 0.0
    for event in events:
        now += event.passed
        if event.kind == "offer":
            offered.append(Ticket(event.session, event.number, now + event.left, now, ""))
            expected = reference.offer(offered[-1], now)
            assert offer(queue, offered[-1], now) == expected
        elif event.kind == "take":
            room, ends = event.number % 4, [now + seconds for seconds in running]
            taken, dropped = queue.take(now, room, costs, ends)
            assert (taken, {(id(each.ticket), type(each.error)) for each in dropped}) == reference.take(now, room, ends)
        elif event.kind == "pass":
            costs.learn(event.number % 5, abs(event.left), now)
            reference.passed(event.number % 5, abs(event.left), now)
        elif offered:
            ticket = offered[event.number % len(offered)]
            here = ticket in reference.waiting
            reference.waiting = [other for other in reference.waiting if other is not ticket]
            assert queue.cancel(ticket) == here
        assert len(queue) == len(reference.waiting)
    assert {id(ticket) for ticket in queue.drain()} == {id(ticket) for ticket in reference.waiting}


def offer(queue: FrameQueue[str], ticket: Ticket[str], now: float) -> Leaving | type[LinkError]:
    try:
        return {(id(each.ticket), type(each.error)) for each in queue.offer(ticket, now)}
    except LinkError as error:
        return type(error)
