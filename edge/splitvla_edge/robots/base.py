"""What the daemon asks of a camera and of a robot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from splitvla_edge.daemon.episodes import Episode
from splitvla_edge.fallback import Command
from splitvla_edge.robots.action_space import ActionSpace
from splitvla_shared.nouns import Image


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image; captured_at is monotonic seconds, index rises with every frame of the camera."""

    image: Image
    captured_at: float
    index: int


class Camera(Protocol):
    """Used by the perception process. Any method may raise RobotError; `newest` is called from a second thread."""

    def newest(self, now: float) -> tuple[float, int] | None:
        """Capture time and index of the newest frame, without decoding it; None before the first."""

    def latest(self, now: float) -> Frame | None:
        """The newest frame; None before the first."""

    def exhausted(self, now: float) -> bool:
        """True when no newer frame will ever come."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class RobotState:
    """What a driver says of its robot. Units as in actions.

    ready: it accepts commands. estop: the operator's e-stop as it reads it. enabled: False while its operator has
    disarmed it on purpose; the machine then waits in INIT, and arms again without a reset when it is True.
    """

    ready: bool = True
    estop: bool = False
    position: tuple[float, ...] | None = None
    gripper: float | None = None
    enabled: bool = True


class Robot(Protocol):
    """Used by the control process. Calls must return well within a control period; any may raise RobotError."""

    @property
    def action_space(self) -> ActionSpace: ...

    def read_state(self) -> RobotState: ...

    def apply(self, command: Command) -> None:
        """Execute one command; empty values mean: send nothing that moves."""

    def stop(self) -> None:
        """Ask the driver to come to rest and stay there. May be called twice."""

    def close(self) -> None: ...


class OpenedRobot(Robot, Protocol):
    """Used by the daemon: a robot, and what it knows besides moving."""

    @property
    def camera_memory(self) -> Path | None:
        """Where the robot's own camera leaves its pictures; None where the camera is a device of its own."""

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """Those that have ended, in a world that knows when a task is done; elsewhere none."""
