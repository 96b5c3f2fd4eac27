"""What signals do to a run: whoever or whatever sends them, the robot is asked for its stop first."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from splitvla_edge.daemon import run as daemon
from splitvla_edge.daemon.black_box import BlackBox
from splitvla_edge.daemon.control import Requests
from splitvla_edge.daemon.record import run_has_ended
from splitvla_edge.daemon.run import run
from splitvla_edge.daemon.supervisor import Supervisor
from splitvla_shared.errors import RobotError
from tests.daemons import PATIENCE_S
from tests.run_rig import Arm, plug_in, settings


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Arm:
    return plug_in(monkeypatch)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP])
def test_every_way_to_break_off_a_run_but_a_kill_ends_it_with_the_robot_s_stop(
    arm: Arm, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm.estop = False
    groups: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda *called: groups.append(called))  # the tests' own group is others' too

    def kill() -> None:
        assert signal.getsignal(number) is not signal.SIG_DFL, "or it would be the tests that stop"
        os.kill(os.getpid(), number)

    arm.reads = kill
    assert run(settings(tmp_path, duration_s=PATIENCE_S)) == 0
    assert (arm.applied, arm.stops) == (3, 1)
    assert (groups[:1] == [(0, signal.SIGCONT)]) is (number == signal.SIGTSTP)


def test_ctrl_backslash_is_left_to_the_kernel_which_ends_a_driver_that_hangs_in_c(arm: Arm, tmp_path: Path) -> None:
    before, handlers = signal.getsignal(signal.SIGQUIT), list[object]()

    def look() -> None:
        handlers.append(signal.getsignal(signal.SIGQUIT))
        os.kill(os.getpid(), signal.SIGTERM)

    arm.reads = look
    run(settings(tmp_path, duration_s=PATIENCE_S))
    assert handlers == [before]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1])
def test_a_second_signal_does_not_keep_the_run_from_its_end(arm: Arm, tmp_path: Path, number: signal.Signals) -> None:
    """A lost session says so twice: the shell tells its jobs, and the kernel those in the foreground."""
    before = signal.getsignal(number)
    arm.reads = lambda: os.kill(os.getpid(), number)
    arm.closes = lambda: os.kill(os.getpid(), number)
    assert run(settings(tmp_path)) == RobotError.exit_code
    assert run_has_ended(tmp_path)
    assert signal.getsignal(number) is before


def _ctrl_c_twice() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_ctrl_c_leaves_a_robot_that_answers_the_end_of_its_call(arm: Arm, tmp_path: Path) -> None:
    """Two come at once where a program around this one hands its own on."""
    arm.reads = _ctrl_c_twice
    assert run(settings(tmp_path, duration_s=PATIENCE_S)) == RobotError.exit_code
    assert arm.applied == 3


def test_a_second_ctrl_c_breaks_off_a_call_of_the_robot_that_never_returns_and_asks_for_its_stop(
    arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("splitvla_edge.daemon.control.STUCK_S", 0.0)
    before: list[int] = []

    def never_return() -> None:
        before.append(arm.stops)
        _ctrl_c_twice()
        threading.Event().wait(PATIENCE_S)

    arm.reads = never_return
    with pytest.raises(KeyboardInterrupt):
        run(settings(tmp_path, duration_s=PATIENCE_S))
    assert before == [arm.stops - 1]
    assert run_has_ended(tmp_path)
    assert f"its log is in {tmp_path}" in capsys.readouterr().err


def test_a_ctrl_c_at_the_end_of_a_run_costs_neither_the_black_box_nor_what_is_to_be_told(
    arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed: list[BlackBox] = []
    whole = Supervisor[object].end

    def end(supervisor: Supervisor[object]) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            whole(supervisor)

    monkeypatch.setattr(Supervisor, "end", end)
    monkeypatch.setattr(BlackBox, "close", lambda box: closed.append(box))
    with pytest.raises(KeyboardInterrupt):
        run(settings(tmp_path))
    assert closed
    assert "SAFE_STOP, e-stop pressed" in capsys.readouterr().err
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "SAFE_STOP"


def test_a_lost_session_ends_the_run_unless_that_is_to_be_ignored() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, ends in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):  # nohup ignores it
            signal.signal(signal.SIGHUP, handler)
            requests = Requests()
            with daemon._signals(requests, (signal.SIGHUP,)):
                os.kill(os.getpid(), signal.SIGHUP)
            assert requests.stop is ends
    finally:
        signal.signal(signal.SIGHUP, before)
