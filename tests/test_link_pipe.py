"""The pure model of a link: when each segment arrives, under every condition, on simulated time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.link import Bursts, Conditions, Delivery, Pipe, Trace

KILO = 1000
FAST = Conditions()


def arrivals(pipe: Pipe[int], until: float = 1e6) -> dict[int, float]:
    """When each payload arrived; all are popped at `until`."""
    return {delivery.payload: delivery.at for delivery in pipe.pop(until)}


def sent(conditions: Conditions, *times: float, size: int = KILO, seed: int = 0) -> dict[int, float]:
    pipe: Pipe[int] = Pipe(conditions, seed=seed)
    for number, at in enumerate(times):
        pipe.push(at, 1, size, number)
    return arrivals(pipe)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (FAST, {0: 0.0, 1: 0.0}),
        (Conditions(delay_ms=20.0), {0: 0.02, 1: 0.02}),
        (Conditions(rate_mbps=0.8), {0: 0.01, 1: 0.02}),
        (Conditions(rate_mbps=0.8, delay_ms=5.0), {0: 0.015, 1: 0.025}),
        (Conditions(rate_mbps=Trace(0.1, np.array([0.0, 0.8]))), {0: 0.11, 1: 0.12}),
        (Conditions(delay_ms=Trace(0.1, np.array([7.0, 9.0]))), {0: 0.007, 1: 0.007}),
        (Conditions(loss=1.0), {0: 0.2, 1: 0.2}),
        (Conditions(closed=True), {}),
    ],
)
def test_two_segments_sent_at_once_arrive_by_the_table(conditions: Conditions, expected: dict[int, float]) -> None:
    assert sent(conditions, 0.0, 0.0) == pytest.approx(expected)


def test_an_idle_link_does_not_save_up_its_rate() -> None:
    assert sent(Conditions(rate_mbps=0.8), 0.0, 5.0) == pytest.approx({0: 0.01, 1: 5.01})


def test_a_burst_delays_everything_for_its_length_and_nothing_overtakes() -> None:
    bursts = Conditions(bursts=Bursts(every_s=10.0, length_s=1.0, extra_ms=300.0))
    assert sent(bursts, 1.0, 8.9, 9.5, 9.95, 10.0, 10.5) == pytest.approx(
        {0: 1.0, 1: 8.9, 2: 9.8, 3: 10.25, 4: 10.25, 5: 10.5}
    )


def test_the_rate_changes_in_the_middle_of_a_segment() -> None:
    pipe: Pipe[int] = Pipe(Conditions(rate_mbps=0.8))
    pipe.push(0.0, 1, 10 * KILO, 0)  # 100 ms at this rate
    pipe.set(0.05, Conditions(rate_mbps=8.0))
    assert arrivals(pipe) == pytest.approx({0: 0.055})


def test_what_a_partition_held_back_comes_with_the_next_retransmission() -> None:
    pipe: Pipe[int] = Pipe(FAST)
    pipe.set(1.0, Conditions(closed=True))
    pipe.push(1.1, 1, KILO, 0)  # retransmitted at 1.3, 1.7, 2.5
    pipe.set(2.0, FAST)
    pipe.push(2.1, 1, KILO, 1)  # of the same flow: behind it
    pipe.push(2.1, 2, KILO, 2)  # of a flow that the partition did not touch
    assert arrivals(pipe) == pytest.approx({0: 2.5, 1: 2.5, 2: 2.1})


def test_a_partition_in_the_middle_of_a_segment_keeps_what_has_passed() -> None:
    slow = Conditions(rate_mbps=0.8, rto_ms=0.0)
    pipe: Pipe[int] = Pipe(slow)
    pipe.push(0.0, 1, 10 * KILO, 0)
    pipe.set(0.05, Conditions(rate_mbps=0.8, rto_ms=0.0, closed=True))
    pipe.set(3.0, slow)
    assert arrivals(pipe) == pytest.approx({0: 3.05})


def test_what_is_on_its_way_when_the_link_closes_still_arrives() -> None:
    pipe: Pipe[int] = Pipe(Conditions(delay_ms=100.0))
    pipe.push(0.0, 1, KILO, 0)
    pipe.set(0.05, Conditions(closed=True))
    assert arrivals(pipe) == pytest.approx({0: 0.1})


def test_next_at_says_when_the_next_segment_arrives() -> None:
    pipe: Pipe[int] = Pipe(Conditions(delay_ms=30.0))
    assert pipe.next_at(0.0) == math.inf
    pipe.push(0.0, 1, KILO, 0)
    assert pipe.next_at(0.0) == pytest.approx(0.03)
    assert pipe.pop(0.029) == []
    assert [delivery.payload for delivery in pipe.pop(0.03)] == [0]


def test_a_flow_has_room_until_its_buffer_waits_full_and_again_as_the_link_takes_it() -> None:
    pipe: Pipe[int] = Pipe(Conditions(rate_mbps=0.8, buffer_bytes=2 * KILO))
    pipe.push(0.0, 1, 2 * KILO, 0)
    assert (pipe.room(0.0, 1), pipe.room(0.0, 2)) == (0, 2 * KILO)
    assert pipe.room(0.02, 1) == 2 * KILO


def test_a_cancelled_message_frees_the_link_but_for_what_the_socket_held() -> None:
    pipe: Pipe[int] = Pipe(Conditions(rate_mbps=0.8))
    for number in range(4):
        pipe.push(0.0, 1, KILO, number)
    pipe.push(0.0, 2, KILO, 4)
    assert pipe.drop(0.0, 1, keep_bytes=KILO) == 3 * KILO
    assert arrivals(pipe) == pytest.approx({0: 0.01, 4: 0.02})


def test_nothing_of_a_forgotten_flow_arrives() -> None:
    pipe: Pipe[int] = Pipe(Conditions(delay_ms=10.0))
    pipe.push(0.0, 1, KILO, 0)
    pipe.push(0.0, 2, KILO, 1)
    pipe.forget(0.001, 1)
    pipe.push(0.001, 1, KILO, 2)
    assert arrivals(pipe) == pytest.approx({1: 0.01, 2: 0.011})


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.3, 230, 370), (1.0, 1000, 1000)])
def test_damage_comes_in_its_share(share: float, low: int, high: int) -> None:
    pipe: Pipe[int] = Pipe(Conditions(corrupt=share, duplicate=share))
    for number in range(1000):
        pipe.push(0.0, 1, 100, number)
    delivered = pipe.pop(1.0)
    assert low <= sum(delivery.corrupt for delivery in delivered) <= high
    assert low <= sum(delivery.copies == 2 for delivery in delivered) <= high


def test_loss_is_by_packet_and_costs_a_retransmission_time_out() -> None:
    times = sent(Conditions(loss=0.01, rto_ms=200.0), *(float(number) for number in range(1000)), size=1448)
    late = sum(at - number > 0.1 for number, at in times.items())
    assert 2 <= late <= 25


def test_the_same_seed_gives_the_same_link() -> None:
    shaky = Conditions(jitter_ms=20.0, loss=0.1)
    times = [number / 50 for number in range(100)]
    assert sent(shaky, *times, seed=3) == sent(shaky, *times, seed=3) != sent(shaky, *times, seed=4)


@pytest.mark.parametrize(
    "fields",
    [{"rate_mbps": 0.0}, {"delay_ms": -1.0}, {"jitter_ms": math.nan}, {"loss": 1.5}, {"buffer_bytes": 0}],
)
def test_conditions_that_no_link_has_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        Conditions(**fields)  # type: ignore[arg-type]


ANY = st.builds(
    Conditions,
    rate_mbps=st.one_of(st.none(), st.floats(0.1, 100), st.just(Trace(0.1, np.array([2.0, 0.0, 9.0])))),
    delay_ms=st.floats(0, 200),
    jitter_ms=st.sampled_from([0.0, 20.0]),
    loss=st.sampled_from([0.0, 0.2]),
    closed=st.booleans(),
)
STEPS = st.lists(
    st.tuples(st.floats(0, 0.3), st.one_of(ANY, st.tuples(st.integers(1, 3), st.integers(1, 20_000)))), max_size=30
)


def _run(steps: list[tuple[float, Conditions | tuple[int, int]]], polls: list[float]) -> list[Delivery[int]]:
    """The history, popped after each step where polls says so; then the link is opened and all comes out."""
    pipe: Pipe[int] = Pipe(FAST, seed=1)
    now, delivered = 0.0, []
    for number, (wait, step) in enumerate(steps):
        for poll in polls:
            delivered += pipe.pop(now + wait * poll)
        now += wait
        if isinstance(step, Conditions):
            pipe.set(now, step)
        else:
            pipe.push(now, step[0], step[1], number)
    pipe.set(now, FAST)
    return delivered + pipe.pop(now + 1e5)


@given(STEPS)
def test_everything_arrives_once_in_its_flows_order_and_never_before_it_was_sent(
    steps: list[tuple[float, Conditions | tuple[int, int]]],
) -> None:
    delivered = _run(steps, [])
    pushed = [number for number, (_, step) in enumerate(steps) if not isinstance(step, Conditions)]
    assert sorted(delivery.payload for delivery in delivered) == pushed
    sent_at = np.cumsum([wait for wait, _ in steps])
    for flow in (1, 2, 3):
        mine = [delivery for delivery in delivered if delivery.flow == flow]
        assert [delivery.payload for delivery in mine] == sorted(delivery.payload for delivery in mine)
    assert all(delivery.at >= sent_at[delivery.payload] - 1e-9 for delivery in delivered)


@given(STEPS)
def test_how_often_one_looks_changes_nothing(steps: list[tuple[float, Conditions | tuple[int, int]]]) -> None:
    once, often = _run(steps, []), _run(steps, [0.1, 0.5, 0.9])
    assert {delivery.payload: delivery.at for delivery in often} == pytest.approx(
        {delivery.payload: delivery.at for delivery in once}
    )


@given(st.lists(st.tuples(st.floats(0, 0.05), st.integers(1, 20_000)), min_size=1, max_size=30), st.floats(0.5, 50))
def test_no_link_carries_more_than_its_rate(segments: list[tuple[float, int]], mbps: float) -> None:
    pipe: Pipe[int] = Pipe(Conditions(rate_mbps=mbps))
    now = 0.0
    for number, (wait, size) in enumerate(segments):
        now += wait
        pipe.push(now, 1, size, number)
    delivered = pipe.pop(1e6)
    for first in range(len(delivered)):
        carried = sum(delivery.size for delivery in delivered[first + 1 :])
        assert carried * 8e-6 / mbps <= delivered[-1].at - delivered[first].at + 1e-6
