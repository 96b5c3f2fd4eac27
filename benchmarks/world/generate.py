"""Frames to learn from: scripted experts, pushed off their way, and labelled by what they would do next.

    python -m benchmarks.world.generate OUT [--episodes 150] [--seed 0] [--part 0/2]

Every frame is one state, labelled with the expert's own action there; bursts of noise move the arm, never the label.
Every task has 20,000 seeds of its own; evaluation takes seeds from 1,000,000 up, which are never trained on.
Rerunning goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.progress import Progress

from benchmarks.world.shards import TASK_NAMES, Sample, write_shard
from splitvla_edge.robots.metaworld.actions import GRIPPER, MAX_STEP_M
from splitvla_edge.robots.metaworld.tasks import TASKS
from splitvla_edge.robots.metaworld.world import World
from splitvla_shared.nouns import ActionArray

EPISODE_STEPS = 60
FIRST_TEST_SEED = 1_000_000
_EPISODES_A_SHARD = 10
_BURST_CHANCE, _BURST_STEPS, _NOISE = 0.15, 3, 0.7
_LONGEST_DETOUR = 8
_SEEDS_A_TASK = 20_000


class Perturbation:
    """Bursts of noise on the motion. Mutable state: how many steps the present burst still lasts, and its direction."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng, self._left = rng, 0
        self._push = np.zeros(3)

    def __call__(self, action: ActionArray) -> ActionArray:
        if not self._left and self._rng.random() < _BURST_CHANCE:
            self._left = int(self._rng.integers(1, _BURST_STEPS + 1))
            self._push = self._rng.normal(0.0, _NOISE, 3)
        if not self._left:
            return action
        self._left -= 1
        moved = action.copy()
        moved[:3] += MAX_STEP_M * self._push
        moved[GRIPPER] = np.clip(moved[GRIPPER] + self._rng.normal(0.0, 0.2), 0.0, 1.0)
        return moved


def episode_seeds(seed: int, task: str, start: int, count: int) -> range:
    """Other seeds for every task: tasks of one scene would otherwise share their layouts."""
    first = seed + TASK_NAMES.index(task) * _SEEDS_A_TASK + start
    return range(first, first + count)


def labelled(world: World) -> Iterator[Sample]:
    """The present frame with the expert's action, once for each task that this scene could be."""
    image, places = world.image(), world.landmarks()
    for task in TASKS.values():
        if task == world.task or (task.ball is not None and task.environment == world.task.environment):
            yield Sample(image, task.name, world.expert_action(task.name), places)


def expert_episode(world: World, task: str, seed: int) -> Iterator[Sample]:
    """The frames of one perturbed expert, until the task is done.

    Two in three begin with a detour in one random direction, so that the hand is seen all over the table.
    """
    rng = np.random.default_rng([seed, 1])
    perturb = Perturbation(rng)
    world.reset(task, seed)
    way = np.append(rng.uniform(-MAX_STEP_M, MAX_STEP_M, 3), [0.0, 0.0, 0.0, 0.5])
    for _ in range(max(0, int(rng.integers(-_LONGEST_DETOUR // 2, _LONGEST_DETOUR + 1)))):
        world.step(way)
    while world.steps < EPISODE_STEPS and not world.success:
        yield from labelled(world)
        world.step(perturb(world.expert_action()))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.world.generate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder for the shards, outside of git")
    parser.add_argument("--episodes", type=int, default=150, help="of every task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="0/1", help="K/N makes every N-th shard, so that N processes share the work")
    arguments = parser.parse_args()
    part, parts = (int(number) for number in arguments.part.split("/"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    starts = range(part * _EPISODES_A_SHARD, arguments.episodes, parts * _EPISODES_A_SHARD)
    world = World()
    with Progress() as progress:
        bar = progress.add_task("episodes", total=len(starts) * _EPISODES_A_SHARD * len(TASK_NAMES))
        for start in starts:
            for task in TASK_NAMES:
                path = arguments.out / f"expert-{start:05d}-{task}"
                if not path.is_dir():
                    seeds = episode_seeds(arguments.seed, task, start, _EPISODES_A_SHARD)
                    write_shard(path, [sample for seed in seeds for sample in expert_episode(world, task, seed)])
                progress.advance(bar, _EPISODES_A_SHARD)
    world.close()


if __name__ == "__main__":
    main()
