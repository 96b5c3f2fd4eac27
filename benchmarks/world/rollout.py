"""Episodes in lockstep: several worlds, one batch of pictures a step. The world waits for whoever acts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from benchmarks.world.actor import Act
from benchmarks.world.generate import EPISODE_STEPS
from splitvla_edge.robots.metaworld.world import World
from splitvla_shared.nouns import ActionArray, Image


@dataclass(frozen=True, slots=True)
class Job:
    """One episode: which task, from which seed, and what the robot is told; None means the task's own words."""

    task: str
    seed: int
    instruction: str | None = None


@dataclass(slots=True)
class Episode:
    """Mutable state: a world under way, and the actions so far."""

    job: Job
    world: World
    actions: list[ActionArray] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.world.success or self.world.steps >= EPISODE_STEPS

    @property
    def instruction(self) -> str:
        return self.job.instruction or self.world.instruction


Watch = Callable[[Episode, Image], None]


def run(act: Act, jobs: Iterable[Job], worlds: list[World], watch: Watch | None = None) -> Iterator[Episode]:
    """Every job's episode as it ends. Its world goes on to the next job once the caller asks for more.

    watch: called with each picture before it is acted on.
    """
    waiting = iter(jobs)
    free, running = list(worlds), list[Episode]()
    while True:
        while free and (job := next(waiting, None)) is not None:
            world = free.pop()
            world.reset(job.task, job.seed)
            running.append(Episode(job, world))
        if not running:
            return
        images = [episode.world.image() for episode in running]
        if watch is not None:
            for episode, image in zip(running, images, strict=True):
                watch(episode, image)
        actions = act(images, [episode.instruction for episode in running])
        for episode, action in zip(running, actions, strict=True):
            episode.actions.append(action)
            episode.world.step(action)
        for episode in [episode for episode in running if episode.over]:
            yield episode
            running.remove(episode)
            free.append(episode.world)


def black(act: Act) -> Act:
    """The same policy with its eyes shut."""
    return lambda images, instructions: act([np.zeros_like(image) for image in images], instructions)
