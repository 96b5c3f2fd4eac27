"""The table of robots: `--robot NAME` to a camera for perception and a robot for control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from splitvla_edge.robots.base import Camera, Robot
from splitvla_edge.robots.camera import CameraSettings, V4l2Camera
from splitvla_edge.robots.replay import CommandRecorder, ReplayCamera, ReplaySettings
from splitvla_shared.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RobotKind:
    """How to open one kind of robot: its camera (with the first frame's number), and where its commands go."""

    camera: Callable[[ReplaySettings, CameraSettings, int], Camera]
    robot: Callable[[ReplaySettings, Path], Robot]


ROBOTS: dict[str, RobotKind] = {
    "replay": RobotKind(lambda replay, camera, first: ReplayCamera(replay, first), CommandRecorder),
    "camera": RobotKind(lambda replay, camera, first: V4l2Camera(camera, first), CommandRecorder),
}


def find_robot(name: str) -> RobotKind:
    """Raises ConfigError naming the robots that there are."""
    if name not in ROBOTS:
        raise ConfigError(f"robot {name!r} is unknown; one of {', '.join(ROBOTS)}")
    return ROBOTS[name]


def open_camera(name: str, replay: ReplaySettings, camera: CameraSettings, first_frame: int = 0) -> Camera:
    """The camera of a robot. Raises ConfigError."""
    return find_robot(name).camera(replay, camera, first_frame)


def open_robot(name: str, replay: ReplaySettings, run_dir: Path) -> Robot:
    """The robot itself. Raises ConfigError."""
    return find_robot(name).robot(replay, run_dir)
