"""What the fault runs make of commands and records: pure, from hand-written histories."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.faults.driver import Received, driving
from benchmarks.faults.measure import Injection, Outcome, account, outcome
from benchmarks.faults.wall_clock import NoCompiler, WallClock
from splitvla_edge.daemon.record import StepRecord

PERIOD_S = 0.05


def commands(states: str, start: int = 1) -> list[Received]:
    """N: motion, each of a new sequence; W: wait; H: hold; S: safe stop. A tick every 50 ms from 0."""
    names = {"N": "NOMINAL", "W": "WAIT", "H": "HOLD", "S": "SAFE_STOP"}
    return [
        Received(number * PERIOD_S, start + number, names[letter], letter == "N", letter == "S",
                 number if letter == "N" else None, 0 if letter == "N" else None, (0.0,))
        for number, letter in enumerate(states)
    ]  # fmt: skip


def record(tick: int, age_ms: float | None = None, lateness_ms: float = 0.0) -> StepRecord:
    return StepRecord(tick, tick * PERIOD_S, "NOMINAL", "", 1, (0.0,), age_ms=age_ms, lateness_ms=lateness_ms)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("NNNNNNNNNN", Outcome(None, 0, False)),
        ("NNWWHHHHNN", Outcome(200.0, 4, False)),  # the fault ends at 250 ms: H H H, then motion
        ("NNWWHHHHHH", Outcome(200.0, None, False)),
        ("NHHHSSSSSS", Outcome(50.0, None, True)),
        ("NHNNNNHHNN", Outcome(50.0, 1, False)),  # the first hold counts
        ("NNNNNNNHHN", Outcome(350.0, 5, False)),  # a hold that comes after the fault's end
    ],
)
def test_an_injection_is_read_off_the_commands(states: str, expected: Outcome) -> None:
    found = outcome(commands(states), Injection(0.0, 0.25, 1.0))
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(expected))


def test_a_robot_that_its_watchdog_stopped_stands() -> None:
    found = outcome(commands("NNN"), Injection(0.05, 0.05, 1.0), [0.35])
    assert found.hold_ms == pytest.approx(300.0)
    assert (found.resume_ticks, found.latched) == (None, False)


def test_commands_before_and_after_the_injection_do_not_count() -> None:
    assert outcome(commands("HHHNNNNHH"), Injection(0.15, 0.2, 0.34)).hold_ms is None


def test_a_good_run_breaks_no_rule() -> None:
    found = account(commands("NWNWHHNN"), [record(tick, 120.0, tick * 1.0) for tick in range(1, 9)], 300.0)
    assert (found.commands, found.motions, found.oldest_ms, found.violations) == (8, 4, 120.0, ())
    assert (found.lateness_p99_ms, found.lateness_max_ms) == (8.0, 8.0)


def _again(received: list[Received]) -> list[Received]:
    return [received[0], dataclasses.replace(received[1], sequence=received[0].sequence)]


@pytest.mark.parametrize(
    ("received", "said"),
    [
        (commands("H") + commands("H", start=1), "tick 1 came after 1"),
        (commands("H") + commands("H", start=3), "tick 3 came after 1"),
        ([dataclasses.replace(commands("N")[0], state="HOLD")], "moved in HOLD"),
        (_again(commands("NN")), "executed (0, 0) again"),
        ([commands("NN")[1], dataclasses.replace(commands("N")[0], tick=3)], "went back from sequence 1 to 0"),
    ],
)
def test_each_broken_rule_is_named(received: list[Received], said: str) -> None:
    [violation] = account(received, [], 300.0).violations
    assert said in violation


def test_an_action_above_its_maximum_age_is_named() -> None:
    assert account([], [record(7, 301.5)], 300.0).violations == ("tick 7 executed an action of 302 ms",)


def line(tick: int, stop: bool = False) -> bytes:
    command = {"tick": tick, "state": "NOMINAL", "motion": True, "stop": stop, "sequence": 1, "index": 0, "action": [0]}
    return json.dumps(command).encode() + b"\n"


def wait_until(what: Callable[[], object], patience_s: float = 5.0) -> bool:
    until = time.monotonic() + patience_s
    while not what() and time.monotonic() < until:
        time.sleep(0.005)
    return bool(what())


def test_the_driver_stops_by_itself_once_commands_fail_to_come(tmp_path: Path) -> None:
    with driving(tmp_path, watchdog_s=0.1) as driver, driver.pipe.open("wb", buffering=0) as pipe:
        pipe.write(line(1) + line(2)[:10])
        pipe.write(line(2)[10:])
        assert wait_until(lambda: len(driver.received) == 2)
        last = driver.received[-1].at  # a machine that stalls between the lines has a stop there too
        assert wait_until(lambda: driver.watchdog_stops and driver.watchdog_stops[-1] >= last + 0.1)
        stops = len(driver.watchdog_stops)
        pipe.write(line(3, stop=True))
        assert wait_until(lambda: len(driver.received) == 3)
        assert driver.moving_for(time.monotonic() + 9) == 0.0, "a robot that was stopped needs no watchdog"
        assert len(driver.watchdog_stops) == stops


def test_the_wall_clock_of_a_process_is_stepped_and_no_other_clock(tmp_path: Path) -> None:
    try:
        clock = WallClock(tmp_path)
    except NoCompiler as missing:
        pytest.skip(str(missing))
    clock.step(3600)
    code = "import time, datetime; print(time.time(), datetime.datetime.now().timestamp(), time.monotonic())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **clock.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    wall, date, monotonic = (float(word) for word in run.stdout.split())
    assert wall - time.time() == pytest.approx(3600, abs=60)
    assert date - time.time() == pytest.approx(3600, abs=60)
    assert monotonic == pytest.approx(time.monotonic(), abs=60)
