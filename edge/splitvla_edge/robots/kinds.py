"""What a kind of robot is: how its camera is opened, and how the robot itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from splitvla_edge.robots.base import Camera, Robot
from splitvla_edge.robots.camera import CameraSettings
from splitvla_edge.robots.replay import ReplaySettings
from splitvla_edge.robots.simulator.world import SimulatorSettings


class RobotSettings(Protocol):
    """What of a run's settings a robot or its camera may be opened with."""

    @property
    def robot(self) -> str: ...

    @property
    def replay(self) -> ReplaySettings: ...

    @property
    def camera(self) -> CameraSettings: ...

    @property
    def simulator(self) -> SimulatorSettings: ...


@dataclass(frozen=True, slots=True)
class RobotKind:
    """How to open one kind of robot with a camera of its own, and where its commands go.

    camera: from the settings and the first frame's number, called in the perception process. robot: from the settings
    and the run's folder, called in the control process. Neither process sees what the other opens.
    """

    camera: Callable[[RobotSettings, int], Camera]
    robot: Callable[[RobotSettings, Path], Robot]
