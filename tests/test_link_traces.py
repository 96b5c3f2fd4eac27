"""Traces of links: what they carry and when, the three formats, and the generated ones that are shipped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.link.synthetic import PROCESSES, shipped, write_all
from benchmarks.link.traces import Trace, TraceError, read_delays, read_rates, read_runs, statistics

MBIT = 1e6 / 8


def rates(*mbps: float, slot_s: float = 0.1) -> Trace:
    return Trace(slot_s, np.array(mbps, dtype=np.float64))


@pytest.mark.parametrize(
    ("trace", "at", "carried"),
    [
        (rates(8.0), 0.0, 0.0),
        (rates(8.0), 0.05, 50_000.0),
        (rates(8.0, 0.0), 0.15, 100_000.0),
        (rates(8.0, 0.0), 0.25, 150_000.0),  # over the end it starts again
        (rates(8.0, 0.0), 2.0, 1_000_000.0),
    ],
)
def test_a_busy_link_carries_its_rate(trace: Trace, at: float, carried: float) -> None:
    assert trace.bytes_by(at) == pytest.approx(carried)


@pytest.mark.parametrize(
    ("trace", "carried", "at"),
    [
        (rates(8.0), 50_000.0, 0.05),
        (rates(8.0, 0.0), 100_000.0, 0.1),  # before the pause, not after it
        (rates(8.0, 0.0), 100_001.0, 0.200001),
        (rates(0.0, 8.0), 100_000.0, 0.2),
        (rates(0.0, 8.0), 100_001.0, 0.300001),
        (rates(0.0), 1.0, float("inf")),
    ],
)
def test_the_time_of_a_byte_is_the_earliest_that_the_link_has_carried_it(
    trace: Trace, carried: float, at: float
) -> None:
    assert trace.time_of(carried) == pytest.approx(at)


@given(
    st.lists(st.floats(0, 50), min_size=1, max_size=20).filter(lambda values: sum(values) > 0.1),
    st.floats(1, 1e7),
)
def test_time_and_bytes_are_each_others_inverse(values: list[float], carried: float) -> None:
    trace = rates(*values)
    assert trace.bytes_by(trace.time_of(carried)) == pytest.approx(carried, rel=1e-6, abs=1.0)


def test_a_mahimahi_trace_is_read(tmp_path: Path) -> None:
    path = tmp_path / "small.up"
    path.write_text("0\n3\n3\n10\n", encoding="ascii")
    trace = read_rates(path)
    assert trace.duration_s == pytest.approx(0.010)
    assert trace.bytes_by(0.010 - 1e-9) == pytest.approx(4 * 1500, rel=1e-3)


def test_runs_of_pairs_give_the_rates_of_the_first_pair(tmp_path: Path) -> None:
    path = tmp_path / "walk.list"
    path.write_text("###\nRun 1\n1,2\n###\nRun 2\n0.0,0.1\n7,8\n0.0,0.1\n9,9\n", encoding="ascii")
    assert [run.values.tolist() for run in read_runs(path)] == [[1.0, 2.0], [7.0, 8.0]]
    assert read_rates(path).values.tolist() == [1.0, 2.0, 7.0, 8.0]
    assert read_delays(path, 0.2).duration_s == pytest.approx(0.8)


def test_seconds_and_bits_are_read(tmp_path: Path) -> None:
    path = tmp_path / "wifi.csv"
    path.write_text("1,5000000\n2,0\n", encoding="ascii")
    assert read_rates(path).values.tolist() == [5.0, 0.0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.up", ""),
        ("a.up", "5\n3\n"),
        ("a.up", "x\n"),
        ("a.list", "1,2\n"),
        ("a.list", "Run 1\n1,-2\n"),
        ("a.list", ""),
        ("a.csv", "1,2,3\n"),
        ("a.csv", "1,nan\n"),
        ("a.txt", "1\n"),
    ],
)
def test_what_is_no_trace_is_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="ascii")
    with pytest.raises(TraceError, match=name):
        read_rates(path)


def test_a_missing_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"gone\.up can't be read"):
        read_rates(tmp_path / "gone.up")


def test_statistics_are_of_slots_of_100_ms() -> None:
    trace = Trace(0.001, np.repeat([10.0, 0.0, 0.0, 30.0], 100).astype(np.float64))
    found = statistics(trace)
    assert (found.mean, found.longest_outage_s, found.outage_share) == pytest.approx((10.0, 0.2, 0.5))


def test_the_shipped_traces_are_what_the_generator_writes(tmp_path: Path) -> None:
    write_all(tmp_path)
    for name in PROCESSES:
        assert read_rates(tmp_path / f"{name}.list").values == pytest.approx(shipped(name).values)


def test_real_traces_have_the_statistics_of_their_index(link_traces: Path) -> None:
    index = {entry["file"]: entry for entry in json.loads((link_traces / "index.json").read_text(encoding="utf-8"))}
    for name in ("mahimahi/ATT-LTE-driving-2016.up", "mahimahi/TMobile-LTE-short.up"):
        found, entry = statistics(read_rates(link_traces / name)), index[name]
        assert (found.mean, found.p95) == pytest.approx((entry["mean_mbps"], entry["p95_mbps_100ms"]), abs=0.02)
        assert found.longest_outage_s == pytest.approx(entry["longest_outage_ms"] / 1e3)
    walking = statistics(read_rates(link_traces / "nuwins-5g-uplink/throughput/walking/5g/toward.list"))
    assert walking.mean == pytest.approx(127.39, abs=0.01)
