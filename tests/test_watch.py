"""The live view: follows a run from outside and ends with it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from splitvla_edge.daemon.record import STEPS_FILE, StepRecord, write_run
from splitvla_edge.daemon.watch import View, wait_for_run, watch
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import StageTimes

RECORD = StepRecord(
    tick=1,
    t=1.0,
    state="NOMINAL",
    cause="action executed",
    epoch=1,
    command=(0.125, -0.25, 1.0),
    sequence=4,
    age_ms=120.0,
    stages=StageTimes(encode_ms=20.0, total_ms=100.0),
    wire_bytes=282_624,
)
HELD = RECORD._replace(tick=2, t=1.2, state="HOLD", cause="no action", sequence=None, age_ms=None, stages=None)


def write(run_dir: Path, *records: StepRecord, ended: bool) -> None:
    with (run_dir / STEPS_FILE).open("a") as file:
        file.writelines(record.to_json() + "\n" for record in records)
    write_run(run_dir, {"ended": ended})


def test_without_a_terminal_it_prints_lines_until_the_run_ends(tmp_path: Path) -> None:
    write(tmp_path, RECORD, ended=False)
    out = io.StringIO()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        write(tmp_path, HELD._replace(miss="MISSED", perception_up=False), ended=True)

    watch(tmp_path, console=Console(file=out, width=300), sleep=sleep)
    first, last = out.getvalue().splitlines()
    assert slept == [1.0]
    assert "NOMINAL" in first
    assert "age 120 ms; 100 ms, 282,624 B; 0 misses" in first
    assert "HOLD" in last
    assert "1 misses; perception down" in last


def test_it_ends_when_it_is_told_to(tmp_path: Path) -> None:
    write(tmp_path, RECORD, ended=False)
    watch(tmp_path, lambda: True, console=Console(file=io.StringIO()))


def test_on_a_terminal_the_screen_shows_state_stages_bytes_and_command(tmp_path: Path) -> None:
    write(tmp_path, RECORD, HELD._replace(miss="MISSED", detail="frame 5: no answer in 300 ms"), ended=True)
    out = io.StringIO()
    watch(tmp_path, console=Console(file=out, width=100, height=40, force_terminal=True, legacy_windows=False))
    text = out.getvalue()
    for shown in (
        "HOLD: no action",
        "282,624 B",
        "1 MISSED",
        "+0.1250 -0.2500",
        "encode",
        "20.0 ms",
        "no answer in 300",
    ):
        assert shown in text
    assert text.count("█") >= 2


def test_the_band_shows_the_last_sixty_ticks_and_the_rate_the_last_five_seconds() -> None:
    view = View()
    for tick in range(200):
        view.add(RECORD._replace(tick=tick, t=tick * 0.1, sequence=tick if tick % 2 else None))
    assert len(view.band) == 60
    assert view.rate_hz() == pytest.approx(5.0, abs=0.2)


def test_a_view_without_ticks_has_something_to_say() -> None:
    assert "waiting" in View().line()
    Console(file=io.StringIO()).print(View().screen())


def test_a_folder_that_is_no_run_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.json"):
        watch(tmp_path)


def test_the_command_line_follows_a_run(tmp_path: Path) -> None:
    write(tmp_path, RECORD, ended=True)
    command = [sys.executable, "-m", "splitvla_edge", "watch", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "NOMINAL" in result.stdout


def test_a_view_that_is_opened_first_waits_for_its_run(tmp_path: Path) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            write(tmp_path, RECORD, ended=True)

    wait_for_run(tmp_path, timeout_s=10.0, sleep=sleep)
    assert len(waits) == 3


def test_a_view_does_not_wait_for_ever(tmp_path: Path) -> None:
    waits: list[float] = []
    wait_for_run(tmp_path, timeout_s=1.0, sleep=waits.append)
    assert sum(waits) == pytest.approx(1.0, abs=0.2)
