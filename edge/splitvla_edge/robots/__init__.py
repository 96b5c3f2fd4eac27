"""The table of robots: `--robot NAME` to a camera for perception and a robot for control.

NAME is a row of ROBOTS, WORLD:TASK for a simulated arm, or MODULE:NAME for a robot of the user's own.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from splitvla_edge.robots.base import Camera, OpenedRobot, Robot
from splitvla_edge.robots.camera import LiveCamera
from splitvla_edge.robots.device import DeviceCamera, DeviceRobot, faults
from splitvla_edge.robots.kinds import RobotKind, RobotSettings
from splitvla_edge.robots.metaworld.adapter import METAWORLD
from splitvla_edge.robots.own import is_own, own_kind
from splitvla_edge.robots.replay import CommandRecorder, ReplayCamera
from splitvla_edge.robots.simulator.memory import FrameMemory, MemoryCamera
from splitvla_edge.robots.simulator.robot import SimulatedRobot
from splitvla_edge.robots.simulator.world import WorldKind
from splitvla_shared.errors import ConfigError, SplitVLAError

__all__ = [
    *("ROBOTS", "WORLDS", "RobotKind", "RobotSettings"),
    *("find_kind", "find_world", "instruction_of", "open_camera", "open_robot"),
]


def _recorder(settings: RobotSettings, run_dir: Path) -> Robot:
    return CommandRecorder(settings.replay, run_dir)


ROBOTS: dict[str, RobotKind] = {
    "replay": RobotKind(lambda settings, first: ReplayCamera(settings.replay, first), _recorder),
    "camera": RobotKind(lambda settings, first: LiveCamera(settings.camera, first), _recorder),
}
# Simulated robots: the name is followed by a task, the camera sees what the world draws.
WORLDS: dict[str, WorldKind] = {"metaworld": METAWORLD}


def find_world(name: str) -> tuple[WorldKind, str] | None:
    """The world and the task of NAME:TASK; None when the robot is not a simulated one. Raises ConfigError."""
    kind, _, task = name.partition(":")
    if kind in WORLDS:
        WORLDS[kind].instruction(task)  # there is such a task
        return WORLDS[kind], task
    if name not in ROBOTS and not is_own(name):
        known = [*ROBOTS, *(f"{world}:TASK" for world in WORLDS)]
        raise ConfigError(f"robot {name!r} is unknown; one of {', '.join(known)}, or MODULE:NAME for one of your own")
    return None


def find_kind(name: str) -> RobotKind:
    """How to open a robot that is no simulated one. Raises ConfigError."""
    return ROBOTS[name] if name in ROBOTS else own_kind(name)


def open_camera(settings: RobotSettings, first_frame: int = 0, memory: Path | None = None) -> Camera:
    """The camera of a robot. memory: where a simulated robot's pictures are. Raises ConfigError, RobotError."""
    if find_world(settings.robot) is None:
        kind = find_kind(settings.robot)
        with faults(settings.robot, "camera", kept=SplitVLAError):
            return DeviceCamera(settings.robot, kind.camera(settings, first_frame))
    if memory is None:
        raise ConfigError(f"robot {settings.robot!r} has no camera outside of `run`")
    return MemoryCamera(FrameMemory.open(memory))


def open_robot(settings: RobotSettings, dt_s: float, run_dir: Path) -> OpenedRobot:
    """The robot itself. dt_s: control period. Raises ConfigError, RobotError."""
    found = find_world(settings.robot)
    if found is None:
        kind = find_kind(settings.robot)
        with faults(settings.robot, "robot", kept=SplitVLAError), contextlib.ExitStack() as on_error:
            robot = kind.robot(settings, run_dir)
            on_error.callback(robot.close)
            device = DeviceRobot(settings.robot, robot)
            on_error.pop_all()
        return device
    world, _ = found
    world.check_machine()
    space = world.action_space(dt_s, settings.simulator.max_speed_m_s)
    return SimulatedRobot.open(settings.robot, space, settings.simulator, dt_s, run_dir)


def instruction_of(robot: str) -> str:
    """What a simulated robot's task is called in words; empty for any other robot. Raises ConfigError."""
    found = find_world(robot)
    return found[0].instruction(found[1]) if found else ""
