"""Meta-World as a robot of the daemon: the action space that it declares, and whether this machine can have it."""

from __future__ import annotations

import importlib.util

from splitvla_edge.robots.action_space import ActionSpace, Kind
from splitvla_edge.robots.metaworld.actions import GRIPPER, MAX_STEP_M
from splitvla_edge.robots.metaworld.rendering import choose_gl
from splitvla_edge.robots.metaworld.tasks import find_task
from splitvla_edge.robots.simulator.world import World, WorldKind
from splitvla_shared.errors import ConfigError

_GRIPPER_OPEN = 1.0


def action_space(dt_s: float, max_speed_m_s: float) -> ActionSpace:
    """Metres a control step, limited by the arm and by the speed; the rotations are constant; gripper 0..1 (open)."""
    reach = min(MAX_STEP_M, max_speed_m_s * dt_s)
    high = (reach,) * 3 + (0.0,) * 3
    return ActionSpace(
        kind=Kind.DELTA_EE,
        low=(*(-limit for limit in high), 0.0),
        high=(*high, 1.0),
        gripper=GRIPPER,
        gripper_start=_GRIPPER_OPEN,
    )


def check_machine() -> None:
    """Without loading either: is the extra installed, is there a library that draws? Raises ConfigError."""
    if importlib.util.find_spec("metaworld") is None:
        raise ConfigError("metaworld is not installed; pip install 'splitvla[sim]'")
    choose_gl()


def open_world() -> World:
    """Raises ConfigError. Only here is the physics engine loaded."""
    from splitvla_edge.robots.metaworld.world import World as MetaWorld

    return MetaWorld()


METAWORLD = WorldKind(
    open=open_world,
    check_machine=check_machine,
    instruction=lambda task: find_task(task).instruction,
    action_space=action_space,
)
