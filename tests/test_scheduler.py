"""The pure queue: newest frame of a session wins, late work never reaches the GPU, nothing is lost without an error."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitvla_cloud.admission import PassCost
from splitvla_cloud.scheduler import SESSION_WINDOW_S, BusyMeter, Dropped, FrameQueue, Ticket
from splitvla_shared.errors import DeadlineMissed, LinkError, Overloaded, Superseded


def ticket(session: int, sequence: int = 1, deadline: float = 10.0, queued_at: float = 0.0) -> Ticket[str]:
    return Ticket(session, sequence, deadline, queued_at, f"{session}/{sequence}")


def test_the_earliest_deadline_is_served_first() -> None:
    queue: FrameQueue[str] = FrameQueue(4)
    late, soon = ticket(1, deadline=5.0), ticket(2, deadline=2.0)
    assert queue.offer(late, 0.0) == queue.offer(soon, 0.0) == []
    assert [queue.take(0.0)[0], queue.take(0.0)[0], queue.take(0.0)[0]] == [[soon], [late], []]


def test_a_frame_that_will_hardly_be_in_time_lets_the_others_go_first_but_is_tried_when_it_is_alone() -> None:
    queue: FrameQueue[str] = FrameQueue(4)
    cost = PassCost()
    for seconds in (0.1, *[0.4] * 9):
        cost.learn(1, seconds, 0.0)
    hardly, safely = ticket(1, deadline=0.3), ticket(2, deadline=0.5)
    queue.offer(hardly, 0.0)
    queue.offer(safely, 0.0)
    assert queue.take(0.0, 1, cost) == ([safely], [])
    assert queue.take(0.0, 1, cost) == ([hardly], [])


def test_equal_deadlines_are_served_in_order_of_arrival() -> None:
    queue: FrameQueue[str] = FrameQueue(4)
    second, first = ticket(1, queued_at=0.2), ticket(2, queued_at=0.1)
    queue.offer(second, 0.2)
    queue.offer(first, 0.2)
    assert queue.take(0.3)[0] == [first]


def test_a_newer_frame_takes_the_place_of_the_sessions_queued_one() -> None:
    queue: FrameQueue[str] = FrameQueue(1)
    older, newer = ticket(1, 1), ticket(1, 2)
    queue.offer(older, 0.0)
    (dropped,) = queue.offer(newer, 0.0)  # no Overloaded: the place is the session's own
    assert dropped.ticket is older
    assert isinstance(dropped.error, Superseded)
    assert queue.take(0.0) == ([newer], [])


def test_a_frame_that_was_overtaken_on_its_way_is_refused() -> None:
    queue: FrameQueue[str] = FrameQueue(4)
    queue.offer(ticket(1, 5), 0.0)
    queue.take(0.0)
    with pytest.raises(Superseded, match="frame 4"):
        queue.offer(ticket(1, 4), 0.1)


def test_a_silent_sessions_numbers_are_forgotten_with_it() -> None:
    queue: FrameQueue[str] = FrameQueue(4)
    queue.offer(ticket(1, 5), 0.0)
    assert queue.sessions(SESSION_WINDOW_S) == 1
    assert queue.sessions(SESSION_WINDOW_S + 0.1) == 0
    assert queue.offer(ticket(1, 1, deadline=20.0), 11.0)  # the old frame expired; the new one is in
    assert len(queue) == 1


def test_an_expired_request_never_reaches_the_gpu() -> None:
    queue: FrameQueue[str] = FrameQueue(4)
    stale = ticket(1, deadline=1.0)
    queue.offer(stale, 0.0)
    taken, (dropped,) = queue.take(1.0)
    assert taken == []
    assert dropped.ticket is stale
    assert isinstance(dropped.error, DeadlineMissed)
    with pytest.raises(DeadlineMissed):
        queue.offer(ticket(2, deadline=1.0), 1.0)


def test_a_full_queue_sheds_the_newcomer_unless_an_expired_frame_makes_room() -> None:
    queue: FrameQueue[str] = FrameQueue(1)
    queue.offer(ticket(1, deadline=1.0), 0.0)
    with pytest.raises(Overloaded, match="1 frames wait"):
        queue.offer(ticket(2), 0.5)
    assert len(queue.offer(ticket(2), 1.5)) == 1
    assert len(queue) == 1


def test_a_cancelled_frame_leaves_and_only_that_very_frame() -> None:
    queue: FrameQueue[str] = FrameQueue(2)
    older, newer = ticket(1, 1), ticket(1, 2)
    queue.offer(older, 0.0)
    queue.offer(newer, 0.0)
    assert not queue.cancel(older)
    assert queue.cancel(newer)
    assert queue.take(0.0) == ([], [])


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["offer", "offer", "offer", "take", "cancel"]),
        st.integers(0, 3),  # session
        st.integers(0, 6),  # sequence
        st.floats(-0.2, 2.0),  # deadline from now
        st.floats(0.0, 0.5),  # time that passes
    ),
    max_size=60,
)


@given(events=EVENTS, limit=st.integers(1, 3))
@settings(max_examples=150)
def test_every_frame_leaves_the_queue_exactly_once_and_for_a_true_reason(
    events: list[tuple[str, int, int, float, float]], limit: int
) -> None:
    """Admitted = taken + dropped + cancelled + still there; the bound holds; no late or overtaken frame is taken."""
    queue: FrameQueue[str] = FrameQueue(limit)
    waiting: list[Ticket[str]] = []
    now = 0.0

    def leave(dropped: list[Dropped[str]], newcomer: Ticket[str] | None) -> None:
        for item in dropped:
            waiting.remove(item.ticket)  # raises when it left twice, or was never admitted
            overtaken = newcomer is not None and item.ticket.session == newcomer.session
            reason: type[LinkError] = DeadlineMissed if item.ticket.deadline <= now else Superseded
            assert isinstance(item.error, reason)
            assert overtaken or reason is DeadlineMissed

    for kind, session, sequence, left, passed in events:
        now += passed
        if kind == "offer":
            candidate = Ticket(session, sequence, now + left, now, "")
            before = list(waiting)
            try:
                leave(queue.offer(candidate, now), candidate)
            except LinkError:
                assert waiting == before
                assert len(queue) == len(waiting)
            else:
                waiting.append(candidate)
        elif kind == "take":
            taken, dropped = queue.take(now)
            leave(dropped, None)
            assert bool(taken) == bool(waiting)
            for item in taken:
                waiting.remove(item)
                assert item.deadline > now
        elif waiting:
            assert queue.cancel(waiting.pop(0))
        assert len(queue) == len(waiting) <= limit
        assert len({item.session for item in waiting}) == len(waiting)
    assert sorted(map(id, queue.drain())) == sorted(map(id, waiting))


def test_busy_is_the_share_of_the_last_second_with_the_running_job() -> None:
    meter = BusyMeter()
    assert meter.share(0.0) == 0.0
    meter.begin(10.0)
    assert meter.share(10.25) == pytest.approx(0.25)
    meter.end(10.5)
    assert meter.share(11.0) == pytest.approx(0.5)
    meter.begin(11.0)
    assert meter.share(11.2) == pytest.approx(0.5)
    meter.end(13.0)
    assert meter.share(13.0) == 1.0
    assert meter.share(14.1) == 0.0
