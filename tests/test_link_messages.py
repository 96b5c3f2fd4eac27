"""Whole messages over a link, and the clients of the trace benchmark, on simulated time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.link import Conditions, Trace
from benchmarks.link.messages import MessageLink
from benchmarks.trace_plot import draw
from benchmarks.trace_shares import SOURCES, Road, Robot, Row, line, ours, plain, roads

MBIT = Conditions(rate_mbps=0.8)  # 100 bytes a millisecond
GOOD = Road("good", Conditions(100.0, 10.0), Conditions(delay_ms=10.0), 20.0)
DEAD = Road("dead", Conditions(closed=True), Conditions(), 20.0)
# The link is there for a second, and away for the next.
FLAPPING = Road("flapping", Conditions(Trace(1.0, np.array([50.0, 0.0])), 10.0), Conditions(delay_ms=10.0), 60.0)
ROBOT = Robot(0.05, 16)


def test_a_message_arrives_once_its_last_byte_has() -> None:
    assert MessageLink(Conditions(rate_mbps=0.8, delay_ms=5.0)).send(1.0, 1000) == pytest.approx(1.015)


def test_messages_that_follow_each_other_do_not_meet() -> None:
    link = MessageLink(MBIT)
    assert [link.send(0.0, 1000), link.send(0.01, 1000)] == pytest.approx([0.01, 0.02])


@pytest.mark.parametrize(
    ("cancelled_at", "arrives"),
    [
        (0.0, 0.05 + 0.01),  # nothing has gone: what the socket held goes first
        (0.08, 0.08 + 0.02 + 0.01),  # less than that is left
        (0.2, 0.21),
    ],
)
def test_a_cancelled_message_keeps_the_link_busy_with_what_the_socket_held(cancelled_at: float, arrives: float) -> None:
    link = MessageLink(MBIT, socket_bytes=5000)
    link.send(0.0, 10_000)
    assert link.send(cancelled_at, 1000) == pytest.approx(arrives)


def test_nothing_arrives_over_a_closed_link() -> None:
    assert MessageLink(Conditions(closed=True)).send(0.0, 1) == math.inf


@pytest.mark.parametrize("road", [GOOD, DEAD, FLAPPING], ids=lambda road: str(road.name))
def test_every_tick_has_one_source(road: Road) -> None:
    for ticks in (ours(road, ROBOT, 0), plain(road, ROBOT, 0)):
        assert sum(ticks.shares.values()) == pytest.approx(1.0)
        assert set(ticks.shares) <= set(SOURCES)


def test_our_machine_never_executes_an_action_that_is_too_old_and_the_plain_client_does() -> None:
    machine, client = ours(FLAPPING, ROBOT, 0), plain(FLAPPING, ROBOT, 0)
    assert machine.oldest_ms <= 900.0 + 1e-6
    assert machine.shares["fresh"] > 0.1
    assert client.shares["stale"] + client.shares["without"] > 0.1
    assert client.oldest_ms > 900.0
    assert client.repeated_ms is not None
    assert client.repeated_ms >= client.oldest_ms


def test_on_a_dead_link_the_machine_holds_and_a_plain_client_has_nothing() -> None:
    assert ours(DEAD, ROBOT, 0).shares == {"hold": 1.0}
    assert plain(DEAD, ROBOT, 0).shares == {"without": 1.0}


def test_the_shipped_links_are_roads_and_a_row_is_drawn(tmp_path: Path) -> None:
    assert len(roads(None)) == 5
    row = Row("good", ROBOT.name, "plain", plain(GOOD, ROBOT, 0))
    assert line(row)[:3] == ("good", "20 Hz, K=16", "plain")
    draw([row], SOURCES, tmp_path / "shares.png", title="shares")
    assert (tmp_path / "shares.png").stat().st_size > 1000
