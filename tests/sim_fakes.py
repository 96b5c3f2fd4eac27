"""A world without physics, the simulator's ends, and whether this machine can have the real one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from splitvla_edge.robots.metaworld.adapter import check_machine
from splitvla_edge.robots.simulator.messages import Message
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import Image


def why_no_world() -> str:
    """Empty where Meta-World can be opened and drawn."""
    try:
        check_machine()
    except ConfigError as error:
        return str(error)
    return ""


needs_world = pytest.mark.skipif(bool(why_no_world()), reason=why_no_world())


class FakeWorld:
    """Done after `done_after` steps; keeps its resets and every action, and shows the number of steps as a grey."""

    def __init__(self, done_after: int = 1000) -> None:
        self.done_after, self.closed = done_after, False
        self.resets: list[tuple[str, int]] = []
        self.actions: list[tuple[float, ...]] = []
        self.position: tuple[float, ...] = ()
        self._steps = 0

    def reset(self, task: str, seed: int) -> None:
        self.resets.append((task, seed))
        self._steps = 0

    def step(self, action: Sequence[float]) -> None:
        self.actions.append(tuple(action))
        self._steps += 1

    def image(self) -> Image:
        return np.full((4, 6, 3), self._steps, np.uint8)

    @property
    def success(self) -> bool:
        return self._steps >= self.done_after

    def close(self) -> None:
        self.closed = True


class FakeProcess:
    """The simulator's supervisor as the robot sees it: says what it is given, keeps what it was told."""

    def __init__(self) -> None:
        self.generation, self.up = 1, True
        self.says: list[Message] = []
        self.told: list[Message] = []
        self.ended = False

    def receive(self) -> list[Message]:
        said, self.says = self.says, []
        return said

    def send(self, message: Message) -> None:
        self.told.append(message)

    def end(self) -> None:
        self.ended = True
