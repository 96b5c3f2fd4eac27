"""What a link adds to an answer, what a robot makes of it, and which way wins where."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from benchmarks.end_to_end.alternatives import Measured, worth_choosing
from benchmarks.end_to_end.link_tables import choice_section, control_section, grid_section, read_traces, traces_section
from benchmarks.end_to_end.links import Driving, Link, arrives, drive, latency_ms, wire_ms
from benchmarks.end_to_end.regions import NO_PICTURES, RATES, Cost, measured_costs, parse_what_if, regions
from benchmarks.end_to_end.ways import Answered, Family
from benchmarks.link import Conditions, Trace
from benchmarks.link.synthetic import FOLDER
from splitvla_shared.errors import ConfigError

SENT = Answered((1,), (0.0,), total_ms=100.0, robot_ms=40.0, server_ms=50.0, up_bytes=125_000 - 300, down_bytes=0)
LOCAL = Answered((1,), (0.0,), total_ms=150.0, robot_ms=150.0)


def way(answer: Answered, family: Family, name: str = "way") -> Measured:
    return Measured(name, family, (answer,))


def test_a_link_adds_the_payload_s_time_and_the_round_trip() -> None:
    expected = 0.100 + 1e6 / 10e6 + 300 * 8 / 10e6 + 0.030
    assert arrives(SENT, Link.symmetric(10.0, 30.0), 0.0) == pytest.approx(expected)


def test_a_model_on_the_robot_does_not_feel_the_link() -> None:
    assert latency_ms(way(LOCAL, Family.LOCAL), Link.symmetric(1.0, 500.0)) == 150.0


def test_the_wire_s_time_holds_no_computing() -> None:
    assert wire_ms(way(SENT, Family.SPLIT), Link.symmetric(10.0, 30.0)) == pytest.approx(10 + 100 + 0.24 + 30)


def test_an_answer_never_comes_over_a_closed_link() -> None:
    link = Link("closed", Conditions(closed=True), Conditions())
    assert arrives(SENT, link, 0.0) == math.inf
    assert drive([SENT], link, Driving()).latency is None


def test_an_answer_within_a_period_makes_every_tick_fresh() -> None:
    driven = drive([SENT], Link.symmetric(None, 0.0), Driving(control_hz=5.0))
    assert driven.hz == pytest.approx(5.0)
    assert driven.fresh == 1.0


def test_an_answer_of_one_and_a_half_periods_makes_two_of_three_ticks_fresh() -> None:
    driven = drive([LOCAL], Link.symmetric(None, 0.0), Driving(control_hz=10.0, max_age_s=0.2))
    assert driven.fresh == pytest.approx(2 / 3, abs=0.01)
    assert driven.hz == pytest.approx(1 / 0.15, abs=0.1)


def test_an_action_that_is_too_old_at_its_tick_is_not_fresh() -> None:
    driven = drive([LOCAL], Link.symmetric(None, 0.0), Driving(control_hz=10.0, max_age_s=0.1))
    assert driven.fresh == 0.0
    assert driven.hz > 0


def test_an_outage_of_a_trace_costs_calls_and_ends() -> None:
    trace = Trace(1.0, np.array([100.0, 0.0]))
    driving = Driving(control_hz=5.0, max_age_s=0.4, deadline_s=0.5, duration_s=10.0)
    driven = drive([SENT], Link.traced("half the time", trace, 10.0), driving)
    assert driven.lost > 0
    assert 0.2 < driven.fresh < 0.8


def test_the_grid_marks_the_fastest_way_on_each_link() -> None:
    section = grid_section([way(SENT, Family.SPLIT, "sent"), way(LOCAL, Family.LOCAL, "local")])
    rows = {row[0]: row[1:] for row in section.rows}
    assert rows["10 Mbit/s, 1 ms"] == ("201", "**150**")
    assert rows["1000 Mbit/s, 1 ms"] == ("**102**", "150")


def test_a_link_that_is_too_slow_reads_never() -> None:
    section = control_section([way(SENT, Family.SPLIT)], Driving(deadline_s=0.15))
    assert ("10 Mbit/s, 1 ms", "never") in section.rows
    assert ("1000 Mbit/s, 1 ms", "5.0, 100%") in section.rows


def test_a_trace_s_tail_stands_beside_the_share_of_calls_that_were_given_up() -> None:
    link = Link.traced("half the time", Trace(1.0, np.array([100.0, 0.0])), 10.0)
    driving = Driving(deadline_s=0.5, duration_s=10.0)
    driven = drive([SENT], link, driving)
    assert driven.latency is not None
    [row] = traces_section([way(SENT, Family.SPLIT)], [link], driving).rows
    assert row[1].endswith(f" ms, {driven.lost / (driven.lost + driven.latency.n):.0%} lost")


def test_the_shipped_traces_are_read_and_a_folder_without_any_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert "lte-driving" in {link.name for link in read_traces(FOLDER)}
    with pytest.raises(ConfigError, match="holds no traces"):
        read_traces(tmp_path_factory.mktemp("empty"))


def test_the_robot_wins_on_slow_links_and_the_smaller_payload_on_fast_ones() -> None:
    costs = [Cost("jpeg", Family.JPEG, 100.0, 20_000), Cost("local", Family.LOCAL, 200.0, 0)]
    winner = regions(costs).winner[0]
    assert list(Family)[winner[0]] is Family.LOCAL
    assert list(Family)[winner[-1]] is Family.JPEG
    crossing = RATES[np.flatnonzero(np.diff(winner))[0]]
    assert crossing == pytest.approx(20_000 * 8e-3 / (200 - 100 - 1), rel=0.05)


def test_where_pictures_stay_on_the_robot_no_picture_wins() -> None:
    costs = measured_costs([way(SENT, Family.JPEG), way(SENT, Family.SPLIT), way(LOCAL, Family.LOCAL)])
    found = regions(costs, NO_PICTURES)
    assert {list(Family)[index] for index in np.unique(found.winner)} <= {Family.SPLIT, Family.LOCAL}


TOKENS = (1, 2, 3, 4)
EXACT = way(dataclasses.replace(SENT, tokens=TOKENS), Family.SPLIT, "split, f32")


def lossy(tokens: tuple[int, ...], family: Family, name: str, up_bytes: int = 1000) -> Measured:
    return way(dataclasses.replace(SENT, tokens=tokens, up_bytes=up_bytes), family, name)


def test_a_rung_is_chosen_only_where_it_keeps_as_many_tokens_as_the_jpeg() -> None:
    jpeg = lossy((1, 2, 3, 0), Family.JPEG, "jpeg")
    as_good, worse = lossy((0, 2, 3, 4), Family.LOSSY, "a"), lossy((0, 0, 3, 4), Family.LOSSY, "b")
    assert worth_choosing([EXACT, jpeg, as_good, worse]) == [EXACT, jpeg, as_good]


def test_rungs_are_held_against_the_exact_split_and_not_against_another_precision_s_encoder() -> None:
    eager = way(dataclasses.replace(LOCAL, tokens=(5, 6, 7, 8)), Family.LOCAL, "PyTorch, bf16")
    same, other = lossy(TOKENS, Family.LOSSY, "a"), lossy((5, 6, 7, 8), Family.LOSSY, "b")
    assert worth_choosing([eager, EXACT, same, other]) == [eager, EXACT, same]


def test_of_two_jpegs_the_better_one_is_what_a_rung_must_keep() -> None:
    jpegs = [lossy((1, 2, 3, 0), Family.JPEG, "ours"), lossy((1, 0, 0, 0), Family.JPEG, "another precision's")]
    rung = lossy((1, 2, 0, 0), Family.LOSSY, "a")
    assert worth_choosing([EXACT, *jpegs, rung]) == [EXACT, *jpegs]


def test_without_a_jpeg_nine_tokens_of_ten_must_be_kept() -> None:
    same, worse = lossy(TOKENS, Family.LOSSY, "a"), lossy((0, 2, 3, 4), Family.LOSSY, "b")
    assert worth_choosing([EXACT, same, worse]) == [EXACT, same]


def test_each_kind_of_way_is_shown_by_its_fastest_on_each_link() -> None:
    rungs = [lossy(TOKENS, Family.LOSSY, f"split, {size}", size) for size in (200_000, 2_000)]
    rows = {row[0]: row[1:] for row in choice_section([EXACT, *rungs], "choice", "A policy").rows}
    assert rows["10 Mbit/s, 1 ms"] == ("201 (f32)", "**103** (2000)")


def test_the_split_wins_what_if_the_robot_encodes_faster_than_the_server() -> None:
    what_if = parse_what_if("robot-encode=10,server-encode=100,backbone=50")
    found = regions(what_if.costs({"f32": 4_194_308, "int4": 557_060}, 24_000, 150_528))
    assert list(Family)[found.winner[0, -1]] is Family.LOSSY
    assert list(Family)[found.winner[0, 0]] is Family.JPEG


@pytest.mark.parametrize("text", ["encode=1", "robot-encode=x", "robot-encode=-1", "robot-encode=5", ""])
def test_a_what_if_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--what-if"):
        parse_what_if(text)
