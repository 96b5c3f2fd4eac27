"""Frames of the trained policy's own way through its tasks, step by step, as clips for the codec's benchmarks.

    python -m benchmarks.codec.record OUT [--episodes 3] [--seed FIRST]

One folder an episode, NUMBER-TASK, with images.npy; on seeds that were never trained on, one after the other from
FIRST. The unsplit policy acts, and the world waits for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.closed_loop.trained import trained
from benchmarks.world.actor import Actor
from benchmarks.world.generate import FIRST_TEST_SEED
from benchmarks.world.rollout import Episode, Job, run
from benchmarks.world.shards import TASK_NAMES
from splitvla_edge.robots.metaworld.world import World
from splitvla_shared.nouns import Image


def record(out: Path, episodes: int, seed: int, checkpoint: Path) -> None:
    """Write the clips; consecutive numbers are episodes of one task. seed: of each task's first episode."""
    seen: dict[int, list[Image]] = {}

    def watch(episode: Episode, image: Image) -> None:
        seen.setdefault(id(episode), []).append(image)

    jobs = [Job(task, seed + number) for task in TASK_NAMES for number in range(episodes)]
    world = World()
    try:
        for number, episode in enumerate(run(Actor.load(checkpoint), jobs, [world], watch)):
            folder = out / f"{number:03d}-{episode.job.task}"
            folder.mkdir(parents=True)
            np.save(folder / "images.npy", np.stack(seen.pop(id(episode))))
    finally:
        world.close()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=3, help="of every task (3)")
    parser.add_argument("--seed", type=int, default=FIRST_TEST_SEED, help=f"of the first episode ({FIRST_TEST_SEED})")
    parser.add_argument("--checkpoint", type=Path, help="the policy (the trained one under benchmarks/world)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    record(arguments.out, arguments.episodes, arguments.seed, arguments.checkpoint or trained())


if __name__ == "__main__":
    main()
