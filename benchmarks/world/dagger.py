"""Frames from the policy's own way, labelled by the expert (DAgger): where it errs is where it has to learn.

    python -m benchmarks.world.dagger RUN FRAMES --round N [--episodes 40]

In each episode the policy acts for 4 to 40 steps and the expert ends what it began; every frame is labelled by the
expert. RUN is the folder of a training run, FRAMES the folder that it learns from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.world.actor import Act, Actor
from benchmarks.world.generate import EPISODE_STEPS, episode_seeds, labelled
from benchmarks.world.shards import TASK_NAMES, Sample, write_shard
from splitvla_edge.robots.metaworld.world import World

_FEWEST, _MOST, _EXPERT_STEPS = 4, 40, 15
_FIRST_SEED = 10_000  # of a task's 20,000: those below are the experts'
_AT_ONCE = 8


def policy_episodes(act: Act, worlds: Sequence[World], task: str, seeds: Sequence[int]) -> list[Sample]:
    """One episode a world, side by side."""
    samples: list[Sample] = []
    until = []
    for world, seed in zip(worlds, seeds, strict=False):
        world.reset(task, seed)
        until.append(int(np.random.default_rng([seed, 2]).integers(_FEWEST, _MOST + 1)))
    while True:
        live = [
            (world, last)
            for world, last in zip(worlds, until, strict=False)
            if not world.success and world.steps < min(EPISODE_STEPS, last + _EXPERT_STEPS)
        ]
        if not live:
            return samples
        new = [list(labelled(world)) for world, _ in live]
        samples += [sample for frame in new for sample in frame]
        actions = act([frame[0].image for frame in new], [world.instruction for world, _ in live])
        for (world, last), action in zip(live, actions, strict=True):
            world.step(action if world.steps < last else world.expert_action())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.world.dagger", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=40, help="of every task")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    actor, worlds = Actor.load(arguments.run), [World() for _ in range(_AT_ONCE)]
    for start in range(0, arguments.episodes, _AT_ONCE):
        for task in TASK_NAMES:
            path = arguments.frames / f"dagger{arguments.round}-{start:05d}-{task}"
            if path.is_dir():
                continue
            first = _FIRST_SEED + arguments.round * arguments.episodes + start
            seeds = episode_seeds(0, task, first, min(_AT_ONCE, arguments.episodes - start))
            samples = policy_episodes(actor, worlds, task, seeds)
            write_shard(path, samples)
            print(f"{path.name}: {len(samples)} frames", flush=True)
    for world in worlds:
        world.close()


if __name__ == "__main__":
    main()
