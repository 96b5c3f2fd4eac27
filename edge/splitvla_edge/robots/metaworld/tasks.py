"""The tasks: what each is called, what the robot is told, and which Meta-World environment it is.

The three reach tasks share one scene of three balls, as do the two faucet tasks share theirs: there the picture alone
does not say what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from splitvla_shared.errors import ConfigError

Position = npt.NDArray[np.float64]  # (3,), metres, in the world's frame
Colour = tuple[float, float, float]

BALLS: Mapping[str, Colour] = MappingProxyType(
    {"red": (0.85, 0.1, 0.1), "green": (0.1, 0.65, 0.15), "blue": (0.1, 0.2, 0.85)}
)
BALL_RADIUS_M = 0.03
# Where a ball's centre may lie, and how far apart any two are: more than twice Meta-World's tolerance of 5 cm, so that
# the hand is never at two balls.
_BALL_LOW, _BALL_HIGH = np.array([-0.2, 0.6, 0.06]), np.array([0.2, 0.9, 0.06])
_BALLS_APART_M = 0.14


@dataclass(frozen=True, slots=True)
class Task:
    """instruction: what the policy is told. environment: Meta-World's name, which also names the scripted expert.

    ball: the colour to be reached where the scene is the one of the three balls. shows_goal: whether a green disc is
    drawn where Meta-World wants the object. expert_gain: the scripted expert's motion is multiplied by it: its gains
    were chosen for a quarter of our control step.
    """

    name: str
    instruction: str
    environment: str
    ball: str | None = None
    shows_goal: bool = False
    expert_gain: float = 1.0


_ALL = (
    Task("reach-red", "reach the red ball", "reach-v3", ball="red", expert_gain=3.0),
    Task("reach-green", "reach the green ball", "reach-v3", ball="green", expert_gain=3.0),
    Task("reach-blue", "reach the blue ball", "reach-v3", ball="blue", expert_gain=3.0),
    Task("button", "press the button down", "button-press-topdown-v3"),
    Task("drawer-open", "open the drawer", "drawer-open-v3"),
    Task("drawer-close", "close the drawer", "drawer-close-v3"),
    Task("faucet-left", "turn the faucet to the left", "faucet-close-v3", expert_gain=0.7),
    Task("faucet-right", "turn the faucet to the right", "faucet-open-v3", expert_gain=0.7),
    Task("push", "push the puck to the green goal", "push-v3", shows_goal=True, expert_gain=0.7),
)
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})


def find_task(name: str) -> Task:
    """Raises ConfigError naming the tasks that there are."""
    if name not in TASKS:
        raise ConfigError(f"metaworld task {name!r} is unknown; one of {', '.join(TASKS)}")
    return TASKS[name]


def place_balls(rng: np.random.Generator) -> dict[str, Position]:
    """A place for every ball, drawn until they are far enough apart."""
    while True:
        places = rng.uniform(_BALL_LOW, _BALL_HIGH, size=(len(BALLS), 3))
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(len(BALLS), 1)]
        if gaps.min() >= _BALLS_APART_M:
            return dict(zip(BALLS, places, strict=True))
