"""A robot that is watched and never commanded: what the shadow mode drives instead of the robot itself."""

from __future__ import annotations

from splitvla_edge.fallback import Command
from splitvla_edge.robots.action_space import ActionSpace
from splitvla_edge.robots.base import Robot, RobotState


class ShadowRobot:
    """Reads the real robot's state; commands and stops go nowhere. The robot's owner closes it."""

    def __init__(self, robot: Robot) -> None:
        self._robot = robot

    @property
    def action_space(self) -> ActionSpace:
        return self._robot.action_space

    def read_state(self) -> RobotState:
        return self._robot.read_state()

    def apply(self, command: Command) -> None:
        """Nothing: somebody else drives this robot."""

    def stop(self) -> None:
        """Nothing either."""

    def close(self) -> None: ...
