"""What the simulator asks of a world, how one is opened, and the settings of a simulated robot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from splitvla_edge.robots.action_space import ActionSpace
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import Image


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """Of a simulated robot; the same for every world.

    seed: of the first episode, the next ones count up. episodes: after the last one the run ends. steps: control steps
    that an episode may take, counted from its first action, holds included; one whose first action does not come for
    as long is over too. start_s: how long the run's first one waits for it, as models take time to load.
    until_done: the run ends with the first success. max_speed_m_s: of the arm, each axis. record: every picture goes
    to the run's folder, frames/<tick>.jpg.
    """

    seed: int = 0
    episodes: int = 1
    steps: int = 60
    start_s: float = 120.0
    until_done: bool = False
    max_speed_m_s: float = 0.8
    record: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("seed", 0, 2**31 - 1), ("episodes", 1, 100_000), ("steps", 1, 100_000)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"simulator.{name} is {getattr(self, name)}; expected {low}..{high}")
        if not 1 <= self.start_s <= 86_400:
            raise ConfigError(f"simulator.start_s is {self.start_s}; expected 1..86400")
        if not 0.01 <= self.max_speed_m_s <= 10:
            raise ConfigError(f"simulator.max_speed_m_s is {self.max_speed_m_s}; expected 0.01..10")


class World(Protocol):
    """A world that stands still between two steps; owned by one thread. Every method may raise RobotError."""

    def reset(self, task: str, seed: int) -> None:
        """Begin an episode; the same task and seed give the same one."""

    def step(self, action: Sequence[float]) -> None:
        """One control step."""

    def image(self) -> Image:
        """What the camera sees: uint8 (height, width, 3), RGB."""

    @property
    def position(self) -> tuple[float, ...]:
        """Where the arm is measured to be, in metres; empty where nothing measures it."""

    @property
    def success(self) -> bool:
        """Whether the task was done at any step since the reset."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class WorldKind:
    """One kind of world. Only `open` loads a physics engine.

    check_machine: raises ConfigError where a package or library is missing. instruction: of a task; raises ConfigError
    for one that there is not. action_space: from the control period in seconds and max_speed_m_s.
    """

    open: Callable[[], World]
    check_machine: Callable[[], None]
    instruction: Callable[[str], str]
    action_space: Callable[[float, float], ActionSpace]
