"""How many frames a pass takes, and that a flood never starves a robot."""

from __future__ import annotations

import math

import pytest

from splitvla_cloud.admission import PassCost, choose
from splitvla_cloud.scheduler import FrameQueue, Ticket
from splitvla_shared.errors import DeadlineMissed


def cost(**seconds: float) -> PassCost:
    found = PassCost()
    for frames, value in seconds.items():
        found.learn(int(frames.removeprefix("n")), value, 0.0)
    return found


def test_an_unknown_cost_is_tried_and_a_known_one_is_a_running_mean() -> None:
    found = cost(n1=1.0, n4=2.0)
    assert [found.of(frames) for frames in (0, 1, 3, 4, 9)] == [0.0, 1.0, 1.0, 2.0, 2.0]
    found.learn(1, 2.0, 1.0)
    assert found.of(1) == 1.2


def test_what_is_usual_is_what_nine_of_ten_recent_passes_took_and_is_forgotten_with_them() -> None:
    found = PassCost()
    assert found.usual(0.0) == 0.0
    for _ in range(10):
        found.learn(1, 1.0, 0.0)
        found.learn(4, 4.0, 0.0)
    assert (found.usual(0.0), found.spread(0.0)) == (1.0, 1.0), "four take four times as long, which is no spread"
    for _ in range(4):
        found.learn(1, 2.0, 0.0)
    assert found.usual(0.0) == pytest.approx(2.0)
    assert found.usual(10.0) == found.of(1) < 2.0


def test_a_pass_in_which_the_process_stood_still_has_no_frame_refused() -> None:
    queue: FrameQueue[str] = FrameQueue(4)
    costs = cost(n1=0.05)
    costs.learn(1, 2.3, 10.0)
    queue.offer(Ticket(1, 1, 10.3, 10.0, "next"), 10.0)
    assert [ticket.work for ticket in queue.take(10.0, 4, costs)[0]] == ["next"]
    assert costs.of(1) == 0.05


def test_a_first_pass_with_a_new_frame_is_believed_however_much_longer_it_is_than_one_without() -> None:
    costs = cost(n0=0.002, n1=0.024, n2=0.048)
    assert [costs.of(frames) for frames in (0, 1, 2)] == [0.002, 0.024, 0.048]


def test_a_second_slow_pass_in_a_row_is_believed() -> None:
    costs = cost(n1=0.1)
    for number in range(3):
        costs.learn(1, 1.0, 10.0 + number)
    assert costs.floor(12.0) == 1.0
    assert costs.of(1) == pytest.approx(0.1 + 0.2 * 0.9 + 0.2 * (1.0 - 0.28))


def test_so_many_frames_share_a_pass_as_have_all_of_them_answered_soonest_on_the_average() -> None:
    far = [math.inf] * 3
    assert choose(far, 0.0, 8, cost(n1=1.0, n2=1.2, n3=1.5)) == 3
    assert choose(far, 0.0, 8, cost(n1=1.0, n2=1.4, n3=1.9)) == 2, "and the third behind them"
    assert choose(far, 0.0, 8, cost(n1=1.0, n2=2.0, n3=3.0)) == 1
    assert choose(far, 0.0, 2, PassCost()) == 2


def test_the_longer_the_queue_the_more_share_a_pass_because_that_frees_the_gpu_sooner() -> None:
    """A small model on a CPU: a prefill a frame, and six passes for whoever is there."""
    costs = cost(n0=0.002, **{f"n{frames}": 0.024 * frames for frames in range(1, 17)})
    for _ in range(30):
        costs.learn_answer(7)
    assert [choose([math.inf] * waiting, 0.0, 16, costs) for waiting in (1, 2, 8, 32)] == [1, 1, 2, 4]


def test_frames_whose_answers_take_further_passes_share_these_although_the_first_pass_gains_nothing() -> None:
    """As on a GPU, where a prefill takes as long a frame for many as for one, and the six passes behind it do not."""
    costs, far = cost(n0=0.003, n1=0.005, n2=0.010, n3=0.015), [math.inf] * 3
    costs.learn_answer(1)
    assert choose(far, 0.0, 8, costs) == 1, "the drafts were right: there is nothing to share"
    for _ in range(30):
        costs.learn_answer(7)
    assert choose(far, 0.0, 8, costs) == 3


def test_nobody_is_made_late_by_company() -> None:
    costs = cost(n0=0.2, n1=1.0, n2=1.2)
    assert choose([1.1, 9.0], 0.0, 8, costs) == 1
    assert choose([0.5, 9.0], 0.0, 8, costs) == 2, "the first is late anyway"
    assert choose([9.0], 0.0, 8, costs, running=[0.5]) == 0
    assert choose([9.0], 0.0, 8, costs, running=[0.1]) == 1


def test_a_frame_that_would_be_late_lengthens_no_pass_of_others_and_may_have_them_join_its_own() -> None:
    """Or an overloaded GPU would spend its passes on frames that make them longer and miss them."""
    costs = cost(n1=0.05, n2=0.07, n3=0.09)
    assert choose([1.0, 0.9, 0.08], 0.0, 8, costs) == 2
    assert choose([0.02], 0.0, 8, costs) == 1
    assert choose([0.02, 1.0], 0.0, 8, costs) == 2


def test_what_is_left_of_an_answer_is_its_other_passes_at_the_cost_of_one_without_new_frames() -> None:
    costs = cost(n0=0.1, n1=1.0)
    assert costs.rest(1) == 0.0
    costs.learn_answer(7)
    assert [costs.rest(passes) for passes in (0, 1, 7, 9)] == pytest.approx([0.7, 0.6, 0.0, 0.0])
    assert costs.rest(9, least=1) == pytest.approx(0.1), "it still runs"
    assert costs.rest(5, least=4) == pytest.approx(0.4)
    costs.learn_answer(2)
    assert costs.rest(1) == pytest.approx(0.5)


def test_new_frames_wait_for_the_running_ones_where_these_lose_more_by_company_than_they_gain() -> None:
    costs = cost(n0=0.1, n1=0.4, n2=0.5)
    far = [math.inf] * 2
    assert choose(far, 0.0, 8, costs, running=[9.0], wait_s=0.5) == 2
    assert choose(far, 0.0, 8, costs, running=[9.0] * 4, wait_s=0.5) == 0, "four lose 0.3 s, two gain 0.5 s"
    assert choose([math.inf] * 3, 0.0, 8, costs, running=[9.0] * 4, wait_s=0.5) == 1, "one after the other"
    assert choose(far, 0.0, 8, costs, running=[9.0], wait_s=0.0) == 0
    assert choose(far, 0.0, 8, costs, wait_s=0.0) == 2, "nobody runs"


def test_a_frame_is_late_when_its_last_pass_is_not_when_its_first_is() -> None:
    queue: FrameQueue[str] = FrameQueue(4)
    costs = cost(n0=0.1, n1=0.3)
    costs.learn_answer(7)  # 0.3 s and six times 0.1 s
    queue.offer(Ticket(1, 1, 0.8, 0.0, "hardly"), 0.0)
    queue.offer(Ticket(2, 1, 1.5, 0.0, "in time"), 0.0)
    assert [ticket.work for ticket in queue.take(0.0, 1, costs)[0]] == ["in time"]


def test_a_deadline_that_no_pass_can_meet_is_dropped_and_the_floor_is_forgotten() -> None:
    queue: FrameQueue[str] = FrameQueue(4)
    costs = cost(n1=0.5)
    queue.offer(Ticket(1, 1, 1.3, 1.0, ""), 1.0)
    taken, (dropped,) = queue.take(1.0, 4, costs)
    assert taken == []
    assert isinstance(dropped.error, DeadlineMissed)
    assert "takes 500 ms" in str(dropped.error)
    queue.offer(Ticket(1, 2, 5.3, 5.0, ""), 5.0)
    assert len(queue.take(5.0, 4, costs)[0]) == 1


def test_passes_of_many_frames_have_no_frame_refused_that_would_be_in_time_alone() -> None:
    queue: FrameQueue[str] = FrameQueue(4)
    costs = cost(n1=0.04)
    costs.learn(8, 0.2, 10.0)
    queue.offer(Ticket(1, 1, 10.15, 10.0, "in time"), 10.0)
    assert [ticket.work for ticket in queue.take(10.0, 8, costs)[0]] == ["in time"]
    costs.learn(1, 0.18, 10.2)  # and what one takes of late counts more than what it took long ago
    assert costs.floor(10.2) == 0.18


def test_a_flood_of_urgent_frames_overtakes_a_waiting_one_once_a_session() -> None:
    queue: FrameQueue[str] = FrameQueue(8)
    queue.offer(Ticket(9, 1, math.inf, 0.0, "patient"), 0.0)
    served = []
    for turn in range(6):
        now = float(turn)
        for session in (1, 2):
            queue.offer(Ticket(session, turn + 1, now + 0.5, now, f"flood {session}"), now)
        queue.offer(Ticket(9, turn + 2, math.inf, now, "patient"), now)  # newer frames keep the place
        served += [ticket.work for ticket in queue.take(now)[0]]
    assert served[:3] == ["flood 1", "flood 2", "patient"]
    assert served.count("patient") == 2
