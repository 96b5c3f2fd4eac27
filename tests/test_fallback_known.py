"""The fallback machine on simulated time gives what is known of such a machine."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.fallback_known import alternating, off_remote_in_bursts, partition
from benchmarks.fallback_sim import recovery_ticks, rung_changes, simulate
from splitvla_edge.fallback import FallbackSettings, State


@pytest.mark.parametrize(("chunk_length", "known"), [(8, 0.095), (16, 0.045), (24, 0.0)])
def test_longer_chunks_bridge_more_of_a_burst(chunk_length: int, known: float) -> None:
    assert off_remote_in_bursts(chunk_length) == pytest.approx(known, abs=0.02)


@pytest.mark.parametrize("chunk_length", [1, 8])
@pytest.mark.parametrize("outage_s", [0.35, 0.9, 2.0, 4.4])
def test_the_robot_moves_again_within_fifteen_ticks_of_the_link_s_return(chunk_length: int, outage_s: float) -> None:
    for phase in range(6):
        ends = 3.013 + phase / 10 + outage_s
        moments = simulate(partition(ends - outage_s, ends), ends + 1.5, chunk_length=chunk_length)
        assert recovery_ticks(moments, ends) <= 15


def test_a_partition_means_hold_in_the_tick_in_which_the_last_action_ends() -> None:
    moments = simulate(partition(3.0, 5.0), 5.0, chunk_length=8)
    for before, after in itertools.pairwise(moments):
        if before.command.state is State.COAST and not after.command.motion:
            assert after.command.state is State.HOLD


@pytest.mark.parametrize(("good", "bad"), [(200.0, 60.0), (100.0, 20.0), (100.0, 2.0), (20.0, 2.0)])
def test_a_bandwidth_that_flaps_changes_the_rung_at_most_six_times_in_four_minutes(good: float, bad: float) -> None:
    moments = simulate(alternating(good, bad), 240.0, chunk_length=8)
    assert 1 <= rung_changes(moments) <= 6


def test_a_licensed_local_policy_bridges_a_partition_and_gives_control_back() -> None:
    moments = simulate(partition(3.0, 8.0), 10.0, chunk_length=8, local=True)
    states = [moment.command.state for moment in moments]
    assert State.LOCAL in states
    assert states[-1] is State.NOMINAL
    settings = FallbackSettings()
    first = next(m for m in moments if m.command.state is State.LOCAL)
    held = next(m for m in moments if m.command.state is State.HOLD)
    assert first.now - held.now == pytest.approx(settings.local_after_s, abs=0.051)
