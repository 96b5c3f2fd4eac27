"""The lockstep clock: the world waits for every action, so that the same seed and policy give the same episode."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.closed_loop.actors import Actor
from splitvla_edge.robots.simulator.world import World
from splitvla_shared.nouns import ActionArray, Image, Observation


@dataclass(frozen=True, slots=True)
class Step:
    """One control step. image: what was seen before it. tokens: of the answer that its action came from."""

    image: Image
    action: ActionArray
    tokens: tuple[int, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """One episode. steps: how many were taken. last: what was seen at its end."""

    task: str
    seed: int
    success: bool
    steps: tuple[Step, ...]
    last: Image


def roll_out(world: World, task: str, seed: int, actor: Actor, instruction: str, limit: int) -> Rollout:
    """One episode of at most `limit` control steps; it ends with its success. Chunks are executed to their end."""
    world.reset(task, seed)
    steps: list[Step] = []
    while len(steps) < limit and not world.success:
        image = world.image()
        chunk = actor.act(Observation(len(steps), (image,), instruction, time.monotonic()))
        for index, action in enumerate(chunk.actions[: limit - len(steps)]):
            steps.append(Step(world.image() if index else image, action, chunk.tokens, chunk.source))
            world.step(tuple(action.tolist()))
            if world.success:
                break
    return Rollout(task, seed, world.success, tuple(steps), world.image())
