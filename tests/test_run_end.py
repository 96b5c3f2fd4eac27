"""How a run begins and ends, whatever its disk, its terminal, its robot or a bug of its own does to it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PillowImage

from splitvla_edge.__main__ import main
from splitvla_edge.daemon import run as daemon
from splitvla_edge.daemon.record import STEPS_FILE, read_steps, run_has_ended, write_run
from splitvla_edge.daemon.run import run
from splitvla_edge.daemon.supervisor import release_subcommand
from splitvla_edge.fallback import FallbackSettings
from splitvla_edge.robots import ROBOTS
from splitvla_edge.robots.base import RobotState
from splitvla_edge.robots.replay import CommandRecorder
from splitvla_shared.errors import BundleError, ConfigError, RobotError
from tests.daemons import PATIENCE_S
from tests.run_rig import Arm, perceive, plug_in, settings


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Arm:
    return plug_in(monkeypatch)


def the_last_write_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(run_dir: Path, content: Mapping[str, Any]) -> None:
        if content["ended"]:
            raise ConfigError(f"{run_dir}/run.json can't be written: No space left on device; choose another folder")
        write_run(run_dir, content)

    monkeypatch.setattr(daemon, "write_run", write)


def test_a_full_disk_does_not_hide_how_the_run_ended(
    arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    the_last_write_fails(monkeypatch)
    assert run(settings(tmp_path)) == RobotError.exit_code
    told = capsys.readouterr()
    assert "run.json can't be written: No space left" in told.err
    assert f"{tmp_path}: {arm.applied} ticks in" in told.out


def test_an_end_that_nobody_reads_leaves_the_exit_code_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a buffer, which the interpreter would fail to flush at its exit, with another code."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    frames, run_dir = tmp_path / "frames", tmp_path / "run"
    frames.mkdir()
    PillowImage.new("RGB", (8, 8)).save(frames / "1.png")
    command = [sys.executable, "-m", "splitvla_edge", "run", "--bundle", str(tmp_path), "--server", "127.0.0.1:9"]
    command += ["--frames", str(frames), "--instruction", "pick up the can", "--run-dir", str(run_dir)]
    with (
        (tmp_path / "stderr").open("w+") as err,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True) as process,
    ):
        assert process.stdout is not None
        assert any(line.startswith("robot replay: commands are recorded") for line in process.stdout)
        process.stdout.close()
    said = (tmp_path / "stderr").read_text()
    assert (process.returncode, "Traceback" in said) == (BundleError.exit_code, False), said
    assert run_has_ended(run_dir)


def test_a_log_that_can_t_be_read_costs_the_summary_only(
    arm: Arm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm.closes = (tmp_path / STEPS_FILE).unlink
    assert run(settings(tmp_path)) == RobotError.exit_code
    assert f"{tmp_path}: no summary: " in capsys.readouterr().out


def test_a_robot_that_does_not_close_costs_neither_log_nor_run_json(
    arm: Arm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise RobotError("the driver does not answer")

    arm.closes = refuse
    assert run(settings(tmp_path)) == RobotError.exit_code
    assert run_has_ended(tmp_path)
    assert len(read_steps(tmp_path / STEPS_FILE)) == arm.applied
    assert "the driver does not answer" in capsys.readouterr().err


def test_an_arm_that_fails_from_the_start_says_so_on_the_terminal(
    arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise RobotError("robot arm:Arm: read_state raised OSError: no cable")

    monkeypatch.setattr(arm, "read_state", refuse)
    assert run(settings(tmp_path)) == 0
    assert capsys.readouterr().err.count("INIT, robot arm:Arm: read_state raised OSError: no cable\n") == 1


@pytest.mark.parametrize("disk", ["well", "full"])
def test_a_bug_stops_the_robot_and_says_where_the_log_is_and_what_it_was(
    arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], disk: str
) -> None:
    if disk == "full":
        the_last_write_fails(monkeypatch)
    before: list[int] = []

    def fail() -> None:
        before.append(arm.stops)
        raise ZeroDivisionError

    arm.reads = fail
    with pytest.raises(ZeroDivisionError) as raised:
        run(settings(tmp_path, duration_s=PATIENCE_S))
    assert any("test_run_end" in str(entry.path) for entry in raised.traceback), "where it was"
    assert before == [arm.stops - 1], "asked for once more, because of the bug"
    assert len(read_steps(tmp_path / STEPS_FILE)) == 2
    assert f"its log is in {tmp_path}" in capsys.readouterr().err
    if disk == "well":
        about = json.loads((tmp_path / "run.json").read_text())
        assert (about["ended"], about["state"]) == (True, "SAFE_STOP")


def test_a_view_ends_with_a_run_that_is_refused_where_a_script_has_ctrl_c_ignored(tmp_path: Path) -> None:
    run_it = ["run", "--view", "--bundle", "b", "--server", "h:1", "--robot", "nosuch:ARM", "--instruction", "lift"]
    ignoring = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable, "-m", "splitvla_edge", *run_it]
    ended = subprocess.run(ignoring, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert ended.returncode == ConfigError.exit_code
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "nosuch" in ended.stderr


def test_a_run_that_was_refused_leaves_no_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="nosuch"):
        run(dataclasses.replace(settings(tmp_path), run_dir=None, robot="nosuch:ARM"))
    assert [*(tmp_path / "runs").iterdir()] == []


def test_a_folder_that_holds_a_run_is_refused_before_anything_moves(arm: Arm, tmp_path: Path) -> None:
    assert run(settings(tmp_path)) == RobotError.exit_code
    kept = (tmp_path / STEPS_FILE).read_bytes()
    arm.applied = 0
    with pytest.raises(ConfigError, match=f"{tmp_path} holds a run already; name another folder or remove it"):
        run(settings(tmp_path))
    assert (arm.applied, (tmp_path / STEPS_FILE).read_bytes()) == (0, kept)


def test_a_folder_that_can_t_be_written_is_found_out_before_anything_moves_and_the_robot_is_closed(
    arm: Arm, tmp_path: Path
) -> None:
    closed: list[bool] = []
    arm.closes = lambda: closed.append(True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        run(settings(tmp_path / "file" / "run"))
    assert (arm.applied, closed) == (0, [True])


@pytest.mark.parametrize("name", ["replay", "camera"])
def test_a_robot_that_only_records_says_so_and_where(
    arm: Arm, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings(tmp_path, robot=name))
    line = f"robot {name}: commands are recorded in {tmp_path / 'commands.jsonl'}, nothing moves\n"
    assert line in capsys.readouterr().out


def test_every_robot_of_the_table_only_records(tmp_path: Path) -> None:
    for kind in ROBOTS.values():
        robot = kind.robot(settings(tmp_path), tmp_path)
        assert isinstance(robot, CommandRecorder)
        robot.close()


def test_in_shadow_mode_the_arm_is_neither_commanded_nor_stopped(arm: Arm, tmp_path: Path) -> None:
    assert run(settings(tmp_path, mode="shadow")) == RobotError.exit_code
    assert len(read_steps(tmp_path / STEPS_FILE)) > 1
    assert (arm.applied, arm.stops) == (0, 0)


def test_a_run_that_ends_in_safe_stop_leaves_a_black_box_that_can_be_played_again(
    arm: Arm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings(tmp_path))
    assert main(["replay-log", str(tmp_path / "black-box-1.bin")]) == 0
    assert "SAFE_STOP e-stop pressed" in capsys.readouterr().out


_CHANNEL = """
import time
from splitvla_edge.daemon.channel import Asked, Channel, Chunk, Exhausted, FrameSeen, Ready
channel = Channel.from_fd(fd)
"""
_ASKS_AND_HANGS = """
while True:  # again, lest one is lost to a machine that stands still
    channel.send(Asked(1, 1, time.monotonic(), time.monotonic() + 0.1))
    time.sleep(5)
"""
_SEES_FRAME_4_AND_DIES = """
channel.receive()
channel.send(FrameSeen(time.monotonic(), 4))
for _ in range(2):  # the second hint is of a tick that began after the frame
    channel.wait(30)
    channel.receive()
"""
_ANSWERS_CLIPPED = """
channel.send(Ready(7, 1, "f"))
for sequence in range(1, 21):
    channel.wait(30)
    for hint in channel.receive()[-1:]:
        now = time.monotonic()
        channel.send(FrameSeen(now, sequence))
        channel.send(Chunk(sequence, hint.epoch, now, now, ((0.5,) * 7,), clipped=1))
channel.send(Exhausted())
channel.wait(30)
"""


def _end_the_run() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_perception_that_hangs_in_a_call_is_killed_for_another(
    arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[int] = []

    def start(name: str, told: str, fd: int) -> subprocess.Popen[str]:
        begun.append(fd)
        if len(begun) > 1:
            _end_the_run()
        return perceive(fd, _CHANNEL + _ASKS_AND_HANGS)

    monkeypatch.setattr(daemon, "start_subcommand", start)
    run(settings(tmp_path, duration_s=PATIENCE_S, hang_s=1.0))
    assert len(begun) == 2
    assert "perception hung: a call has not ended in 1.5 s; it was killed and ended with -9" in capsys.readouterr().err


def test_another_perception_is_told_where_the_frames_go_on(
    arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []

    def release(process: subprocess.Popen[str], line: str) -> None:
        released.append(line)
        release_subcommand(process, line)
        if len(released) > 1:
            _end_the_run()

    monkeypatch.setattr(daemon, "start_subcommand", lambda *told: perceive(told[2], _CHANNEL + _SEES_FRAME_4_AND_DIES))
    monkeypatch.setattr(daemon, "release_subcommand", release)
    run(settings(tmp_path, duration_s=PATIENCE_S))
    assert released[:2] == ["0\n", "5\n"]


@pytest.mark.parametrize("accept", [False, True])
def test_clipped_answers_move_the_arm_only_where_that_is_wanted_and_the_black_box_knows(
    arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accept: bool
) -> None:
    monkeypatch.setattr(arm, "read_state", lambda: RobotState(estop=arm.motions > 0))
    monkeypatch.setattr(daemon, "start_subcommand", lambda *told: perceive(told[2], _CHANNEL + _ANSWERS_CLIPPED))
    patient = FallbackSettings(overrun_ticks=500)
    run(settings(tmp_path, duration_s=PATIENCE_S, accept_clipped=accept, fallback=patient))
    assert (arm.motions > 0) is accept
    assert any(record.clipped for record in read_steps(tmp_path / STEPS_FILE))
    if accept:
        assert main(["replay-log", str(tmp_path / "black-box-1.bin")]) == 0
