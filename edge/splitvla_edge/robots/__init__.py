"""The table of robots: `--robot NAME` or `--robot NAME:TASK` to a camera for perception and a robot for control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from splitvla_edge.robots.base import Camera, OpenedRobot
from splitvla_edge.robots.camera import CameraSettings, V4l2Camera
from splitvla_edge.robots.metaworld.adapter import METAWORLD
from splitvla_edge.robots.replay import CommandRecorder, ReplayCamera, ReplaySettings
from splitvla_edge.robots.simulator.memory import FrameMemory, MemoryCamera
from splitvla_edge.robots.simulator.robot import SimulatedRobot
from splitvla_edge.robots.simulator.world import SimulatorSettings, WorldKind
from splitvla_shared.errors import ConfigError


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

    camera: from the settings and the first frame's number. robot: from the settings and the run's folder.
    """

    camera: Callable[[RobotSettings, int], Camera]
    robot: Callable[[RobotSettings, Path], OpenedRobot]


def _recorder(settings: RobotSettings, run_dir: Path) -> OpenedRobot:
    return CommandRecorder(settings.replay, run_dir)


ROBOTS: dict[str, RobotKind] = {
    "replay": RobotKind(lambda settings, first: ReplayCamera(settings.replay, first), _recorder),
    "camera": RobotKind(lambda settings, first: V4l2Camera(settings.camera, first), _recorder),
}
# Simulated robots: the name is followed by a task, the camera sees what the world draws.
WORLDS: dict[str, WorldKind] = {"metaworld": METAWORLD}


def find_world(name: str) -> tuple[WorldKind, str] | None:
    """The world and the task of NAME:TASK; None when the robot is not a simulated one. Raises ConfigError."""
    kind, _, task = name.partition(":")
    if kind in WORLDS:
        WORLDS[kind].instruction(task)  # there is such a task
        return WORLDS[kind], task
    if name not in ROBOTS:
        raise ConfigError(f"robot {name!r} is unknown; one of {', '.join([*ROBOTS, *(f'{w}:TASK' for w in WORLDS)])}")
    return None


def open_camera(settings: RobotSettings, first_frame: int = 0, memory: Path | None = None) -> Camera:
    """The camera of a robot. memory: where a simulated robot's pictures are. Raises ConfigError, RobotError."""
    if find_world(settings.robot) is None:
        return ROBOTS[settings.robot].camera(settings, first_frame)
    if memory is None:
        raise ConfigError(f"robot {settings.robot!r} has no camera outside of `run`")
    return MemoryCamera(FrameMemory.open(memory))


def open_robot(settings: RobotSettings, dt_s: float, run_dir: Path) -> OpenedRobot:
    """The robot itself. dt_s: control period. Raises ConfigError, RobotError."""
    found = find_world(settings.robot)
    if found is None:
        return ROBOTS[settings.robot].robot(settings, run_dir)
    world, _ = found
    world.check_machine()
    space = world.action_space(dt_s, settings.simulator.max_speed_m_s)
    return SimulatedRobot.open(settings.robot, space, settings.simulator, dt_s, run_dir)


def instruction_of(robot: str) -> str:
    """What a simulated robot's task is called in words; empty for any other robot. Raises ConfigError."""
    found = find_world(robot)
    return found[0].instruction(found[1]) if found else ""
