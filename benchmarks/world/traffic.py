"""What the small policy's episodes put on a link: tokens that repeat from step to step, and frames as JPEG.

    python -m benchmarks.world.traffic benchmarks/world/checkpoint [--episodes 2]

A token that equals the one before it in its place is one that a server could have taken as a draft and accepted.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PilImage

from benchmarks.report import table
from benchmarks.world.actor import Actor
from benchmarks.world.generate import FIRST_TEST_SEED
from benchmarks.world.rollout import Episode, Job, run
from benchmarks.world.shards import TASK_NAMES
from splitvla_edge.robots.metaworld.actions import NAMES
from splitvla_edge.robots.metaworld.world import World
from splitvla_shared.nouns import ActionArray, Image

_QUALITIES = (80, 90, 95)


def jpeg_bytes(image: Image, quality: int) -> int:
    """Size with 4:2:0 chroma."""
    stream = io.BytesIO()
    PilImage.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=2)
    return stream.tell()


def repeats(actions: Sequence[ActionArray]) -> tuple[ActionArray, int]:
    """How often each number of an episode equals the one before it, and how many pairs of steps there are.

    Equal numbers are equal tokens but for the rotations, of which every token means none.
    """
    steps = np.stack(actions)
    return (steps[1:] == steps[:-1]).sum(0).astype(np.float64), len(steps) - 1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.world.traffic", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--episodes", type=int, default=2, help="of every task")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes: dict[int, list[int]] = {quality: [] for quality in _QUALITIES}

    def watch(episode: Episode, image: Image) -> None:
        for quality, bytes_of in sizes.items():
            bytes_of.append(jpeg_bytes(image, quality))

    same, pairs, worlds = np.zeros(len(NAMES)), 0, [World() for _ in range(4)]
    jobs = [Job(task, FIRST_TEST_SEED + n) for n in range(arguments.episodes) for task in TASK_NAMES]
    for episode in run(Actor.load(arguments.checkpoint), jobs, worlds, watch):
        equal, more = repeats(episode.actions)
        same, pairs = same + equal, pairs + more
    print(table(["", *NAMES], [["repeated", *(f"{100 * value / pairs:.0f} %" for value in same)]]))
    rows = [[f"{quality}", *(f"{np.percentile(n, p):.0f}" for p in (50, 100))] for quality, n in sizes.items()]
    print(table(["JPEG quality", "median bytes", "largest"], rows))
    print(f"{pairs} pairs of steps, {len(sizes[_QUALITIES[0]])} frames")
    for world in worlds:
        world.close()


if __name__ == "__main__":
    main()
