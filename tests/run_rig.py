"""A run of the daemon on an arm that tests steer, beside a perception process of a few lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitvla_edge.daemon import run as daemon
from splitvla_edge.daemon.episodes import Episode
from splitvla_edge.daemon.run import RunSettings
from splitvla_edge.fallback import Command
from splitvla_edge.robots.action_space import ActionSpace, Kind
from splitvla_edge.robots.base import RobotState


class Arm:
    """An arm that does as `reads` and `closes` say; while `estop` is pressed, the run ends in SAFE_STOP."""

    camera_memory: Path | None = None
    episodes: tuple[Episode, ...] = ()

    def __init__(self) -> None:
        self.action_space = ActionSpace(Kind.DELTA_EE, (-1.0,) * 7, (1.0,) * 7)
        self.applied = self.motions = self.stops = 0
        self.estop = True
        self.reads: Callable[[], object] = lambda: None
        self.closes: Callable[[], object] = lambda: None

    def read_state(self) -> RobotState:
        if self.applied == 2:
            self.reads()
        return RobotState(estop=self.estop)

    def apply(self, command: Command) -> None:
        self.applied += 1
        self.motions += command.motion

    def stop(self) -> None:
        self.stops += 1

    def close(self) -> None:
        self.closes()


def plug_in(monkeypatch: pytest.MonkeyPatch) -> Arm:
    """The robot of a run, beside a perception process that says nothing."""
    made = Arm()
    monkeypatch.setattr(daemon, "open_robot", lambda *_: made)
    monkeypatch.setattr(daemon, "start_subcommand", _silent)
    return made


def _silent(name: str, told: str, fd: int) -> subprocess.Popen[str]:
    return perceive(fd, "import socket\nend = socket.socket(fileno=fd)\nwhile end.recv(4096):\n    pass")


def perceive(fd: int, script: str) -> subprocess.Popen[str]:
    """A perception process of a few lines; `fd` is its end of the channel."""
    command = [sys.executable, "-c", f"fd = {fd}\n{script}"]
    return subprocess.Popen(command, pass_fds=(fd,), text=True, stdin=subprocess.PIPE)


def settings(run_dir: Path, **options: Any) -> RunSettings:
    given = {"robot": "arm:Arm", "control_hz": 50.0, "duration_s": 0.2, "standby": "off", **options}
    return RunSettings(run_dir, "host:1", instruction="pick up the can", run_dir=run_dir, **given)
