"""Batches for the language model alone: what was seen in a picture, and all that could be asked of it there.

A picture of the three balls comes with its three sentences at once: only the word tells the answers apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.world.batches import near_landmarks, on_patches
from benchmarks.world.camera import project
from benchmarks.world.seen import FOLDER
from benchmarks.world.shards import LANDMARKS, TASK_NAMES, Shard, shard_paths
from benchmarks.world.vocabulary import bins, normalised
from splitvla_edge.robots.metaworld.tasks import BALLS, TASKS

PATCHES = 256
_FINGERS = LANDMARKS.index("fingers")
# What each sentence is about and where it is to go, in the sentence's own words.
ABOUT: Mapping[str, tuple[str, ...]] = {
    **{name: (task.ball,) for name, task in TASKS.items() if task.ball is not None},
    "button": ("button",),
    "drawer-open": ("drawer",),
    "drawer-close": ("drawer",),
    "faucet-left": ("faucet",),
    "faucet-right": ("faucet",),
    "push": ("puck", "goal"),
}
MEANT = 2  # things at most
_WEIGHTS: Mapping[str, float] = {"push": 3.0, "button": 4.0}  # how often a scene of one task is drawn; 1 the others


@dataclass(frozen=True, slots=True)
class Asked:
    """B pictures with P sentences each. patches: (B, J, dim). keep: (B, J), their numbers, rising. tasks: (B, P).

    normalised, bins: (B, P, 7). meant: (B, P, MEANT, 3), metres from the fingers to what the sentence is about; NaN
    where there is no second thing. there: bool (B, P, MEANT, J), which of the patches hold it.
    """

    patches: Tensor
    keep: Tensor
    tasks: Tensor
    normalised: Tensor
    bins: Tensor
    meant: Tensor
    there: Tensor


class Pictures:
    """Every shard that has been looked at so far; `refresh` takes in new ones."""

    def __init__(self, frames: Path, run: Path, seed: int) -> None:
        self._frames, self._seen = frames, run / FOLDER
        self._shards: dict[str, tuple[Shard, npt.NDArray[np.float16]]] = {}
        self._where: list[npt.NDArray[np.int64]] = []
        self._rng = np.random.default_rng(seed)
        self.refresh()

    def refresh(self) -> None:
        for path in shard_paths(self._frames):
            seen = self._seen / f"{path.name}.npy"
            if path.name not in self._shards and seen.is_file():
                self._shards[path.name] = (Shard.open(path), np.load(seen, mmap_mode="r"))
        rows: list[list[tuple[int, int, int]]] = [[] for _ in TASK_NAMES]
        for number, (shard, _) in enumerate(self._shards.values()):
            for picture, first in enumerate(shard.pictures()):
                rows[shard.tasks[first]].append((number, picture, first))
        self._where = [np.array(found, dtype=np.int64).reshape(-1, 3) for found in rows]

    def __len__(self) -> int:
        return sum(map(len, self._where))

    def balls(self, size: int, patches: int) -> Asked:
        """Pictures of the three balls, three sentences each."""
        found = np.concatenate([self._where[index] for index, name in enumerate(TASK_NAMES) if TASKS[name].ball])
        return self._asked(found[self._rng.integers(len(found), size=size)], len(BALLS), patches)

    def others(self, size: int, patches: int) -> Asked:
        """Pictures of the other scenes, one sentence each."""
        weights = np.array(
            [
                0.0 if task.ball or not len(where) else _WEIGHTS.get(name, 1.0)
                for where, (name, task) in zip(self._where, TASKS.items(), strict=True)
            ]
        )
        tasks = self._rng.choice(len(weights), size, p=weights / weights.sum())
        drawn = [self._where[task][self._rng.integers(len(self._where[task]))] for task in tasks]
        return self._asked(np.stack(drawn), 1, patches)

    def _asked(self, rows: npt.NDArray[np.int64], sentences: int, count: int) -> Asked:
        """rows: (B, 3), shard, picture and first sample. count: how many patches are kept, those near things first."""
        shards = [self._shards[name] for name in self._shards]
        of = [(shards[number][0], slice(first, first + sentences)) for number, _, first in rows]
        tasks, actions, places = (
            np.stack([getattr(shard, name)[which] for shard, which in of]) for name in ("tasks", "actions", "landmarks")
        )
        keep = self._keep(places[:, 0], count)
        patches = np.stack([shards[row[0]][1][row[1], kept] for row, kept in zip(rows, keep, strict=True)])
        about = _about()[tasks]  # B, P, MEANT
        there = np.take_along_axis(places, np.maximum(about, 0)[..., None], 2)
        meant = np.where(about[..., None] < 0, np.nan, there - places[:, :, _FINGERS : _FINGERS + 1])
        actions = normalised(actions)
        pixels = np.where(about[..., None] < 0, np.nan, project(there.astype(np.float64)))
        with np.errstate(invalid="ignore"):
            holds = on_patches(pixels[:, :, :, None], keep[:, None, None])
        return Asked(
            patches=torch.from_numpy(patches).float(),
            keep=torch.from_numpy(keep),
            tasks=torch.from_numpy(tasks),
            normalised=torch.from_numpy(actions),
            bins=torch.from_numpy(bins(actions)),
            meant=torch.from_numpy(meant.astype(np.float32)),
            there=torch.from_numpy(holds),
        )

    def _keep(self, places: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
        """Patches near things first, then any, by lot: (B, count), rising."""
        near = near_landmarks(places)
        score = self._rng.random(near.shape) + 10.0 * near
        return np.sort(np.argpartition(-score, count - 1, axis=1)[:, :count], axis=1)


def _about() -> npt.NDArray[np.int64]:
    """(tasks, MEANT): indices into LANDMARKS, -1 for none."""
    rows = [[LANDMARKS.index(thing) for thing in ABOUT[name]] for name in TASK_NAMES]
    return np.array([row + [-1] * (MEANT - len(row)) for row in rows])
