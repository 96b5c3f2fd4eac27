"""The latency model: what is known from which replies, and what is only an upper bound."""

from __future__ import annotations

import pytest

from splitvla_edge.fallback import Chunk
from splitvla_edge.fallback.latency import LatencyModel
from splitvla_shared.nouns import ServerHints, StageTimes

LARGE, SMALL = 1_000_000, 100_000


def answer(wire_bytes: int, network_ms: float, server_ms: float = 60.0, rung: int = 0, queued: int = 0) -> Chunk:
    """A reply whose frame was 10 ms old when the call began, plus the stages."""
    total_s = (10.0 + network_ms + server_ms) / 1e3
    stages = StageTimes(network_ms=network_ms, queue_ms=server_ms / 2, prefill_ms=server_ms / 2)
    return Chunk(
        1,
        1,
        50.0,
        50.0 + total_s,
        ((0.0,),),
        stages=stages,
        wire_bytes=wire_bytes,
        rung=rung,
        hints=ServerHints(queued),
    )


def model(*answers: Chunk) -> LatencyModel:
    made = LatencyModel()
    for number, each in enumerate(answers):
        made.add(float(number), each)
    return made


def test_nothing_is_predicted_from_fewer_than_eight_replies() -> None:
    assert model(*[answer(LARGE, 40.0)] * 7).predict_ms(LARGE) is None
    assert model(*[answer(LARGE, 40.0)] * 8).predict_ms(LARGE) == pytest.approx(110.0)


def test_one_reply_in_twenty_may_take_longer_than_predicted() -> None:
    times = [answer(LARGE, float(ms)) for ms in range(1, 21)]
    assert model(*times).predict_ms(LARGE) == pytest.approx(10 + 19 + 60)


def test_only_the_last_thirty_two_replies_count() -> None:
    fast = [answer(LARGE, 20.0)] * 32
    assert model(*[answer(LARGE, 400.0)] * 9, *fast).predict_ms(LARGE) == pytest.approx(90.0)


def test_with_one_size_all_network_time_may_be_transmission() -> None:
    known = model(*[answer(LARGE, 50.0)] * 8)
    assert not known.measured()
    assert known.saving_ms(LARGE, SMALL) == pytest.approx(45.0)
    assert known.predict_ms(SMALL) == pytest.approx(10 + 5 + 60)


def test_two_sizes_tell_transmission_from_delay() -> None:
    large = [answer(LARGE, 200.0 + 90.0)] * 8
    small = [answer(SMALL, 200.0 + 9.0, rung=1)] * 8
    known = model(*large, *small)
    assert known.measured()
    assert known.saving_ms(LARGE, SMALL) == pytest.approx(81.0)
    assert known.predict_ms(SMALL) == pytest.approx(10 + 209 + 60)
    assert known.predict_ms(LARGE) == pytest.approx(10 + 290 + 60)


def test_delay_alone_makes_no_size_better_than_another() -> None:
    known = model(*[answer(LARGE, 250.0)] * 8, *[answer(SMALL, 255.0, rung=1)] * 8)
    assert known.saving_ms(LARGE, SMALL) == 0.0


def test_no_size_takes_less_than_the_time_that_is_not_the_network_s() -> None:
    assert model(*[answer(LARGE, 5.0, server_ms=400.0)] * 8).predict_ms(1) == pytest.approx(410.0, abs=0.01)


def test_what_a_rung_taught_long_ago_is_forgotten() -> None:
    known = model(answer(SMALL, 10.0, rung=1), *[answer(LARGE, 50.0)] * 8)
    assert known.measured()
    known.add(200.0, answer(LARGE, 50.0))
    assert not known.measured()


# --- what the server says of its queue: an answer takes 30 ms there, and here usually waits for 30 ms -----------------


def test_requests_that_wait_at_the_server_delay_the_next_answer_by_what_exceeds_the_usual_wait() -> None:
    calm = [answer(LARGE, 50.0)] * 8
    assert model(*calm, answer(LARGE, 50.0, queued=1)).predict_ms(LARGE) == pytest.approx(120.0)
    assert model(*calm, answer(LARGE, 50.0, queued=5)).predict_ms(LARGE) == pytest.approx(120.0 + 5 * 30 - 30)


def test_a_queue_that_is_gone_delays_nothing() -> None:
    known = model(*[answer(LARGE, 50.0)] * 8, answer(LARGE, 50.0, queued=5), answer(LARGE, 50.0))
    assert known.predict_ms(LARGE) == pytest.approx(120.0)


def test_a_server_that_answers_several_at_once_is_found_out_by_the_waits_that_follow() -> None:
    known = model(*[answer(LARGE, 50.0, queued=5)] * 12)
    assert known.predict_ms(LARGE) == pytest.approx(120.0), "five were waiting, and the wait was 30 ms every time"


def test_a_miss_leaves_nothing_foretold() -> None:
    known = model(*[answer(LARGE, 50.0)] * 8, answer(LARGE, 50.0, queued=5))
    known.interrupt()
    assert known.predict_ms(LARGE) == pytest.approx(120.0)
