"""Batches of frames: which frames, which of their patches, and what is to be learned from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.checkpoint.sizes import ACTION_BINS, PATCH, Sizes
from benchmarks.world.camera import project
from benchmarks.world.shards import TASK_NAMES, Shard, shard_paths
from benchmarks.world.vocabulary import bins, normalised
from splitvla_edge.robots.metaworld.rendering import IMAGE_SIZE

_SIDE = IMAGE_SIZE // PATCH
_NEAR_PX, _HERE_PX = 1.5 * PATCH, 0.75 * PATCH
_BACKGROUND_FRAMES, _DIFFERENCE = 64, 12.0


@dataclass(frozen=True, slots=True)
class Batch:
    """keep (B, K) and onward (B, J): see Policy.patches. here: bool (B, J, landmarks), whether a patch holds one.

    offsets: (B, J, landmarks, 2) in patches. places: (B, landmarks, 3) in metres, NaN where there is none.
    bins: (B, 7). normalised: (B, 7).
    """

    images: Tensor
    tasks: Tensor
    normalised: Tensor
    bins: Tensor
    keep: Tensor
    onward: Tensor
    here: Tensor
    offsets: Tensor
    places: Tensor

    def to(self, device: str) -> Batch:
        return Batch(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


class Frames:
    """All shards of a folder, of which new ones are taken in by `refresh`. Every task is drawn equally often."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._shards: dict[str, Shard] = {}
        self._where: list[npt.NDArray[np.int64]] = []
        self._rng = np.random.default_rng(seed)
        self._background: npt.NDArray[np.int16] | None = None
        self.refresh()

    def refresh(self) -> bool:
        """Whether there was anything new."""
        new = [path for path in shard_paths(self._folder) if path.name not in self._shards]
        self._shards |= {path.name: Shard.open(path) for path in new}
        if new:
            shards = list(self._shards.values())
            number = np.concatenate([np.full(len(shard), index) for index, shard in enumerate(shards)])
            frame = np.concatenate([np.arange(len(shard)) for shard in shards])
            task = np.concatenate([shard.tasks for shard in shards])
            self._where = [np.stack([number, frame], 1)[task == index] for index in range(len(TASK_NAMES))]
        return bool(new)

    def __len__(self) -> int:
        return sum(len(shard) for shard in self._shards.values())

    def batch(self, size: int, keep: int, onward: int) -> Batch:
        """`keep` patches a frame for the towers, `onward` of them for the language model; 256 means all, in order."""
        shards = list(self._shards.values())
        present = [index for index, rows in enumerate(self._where) if len(rows)]
        tasks = self._rng.choice(present, size)
        rows = [self._where[task][self._rng.integers(len(self._where[task]))] for task in tasks]
        images = np.stack([shards[shard].images[frame] for shard, frame in rows])
        actions = normalised(np.stack([shards[shard].actions[frame] for shard, frame in rows]))
        places = np.stack([shards[shard].landmarks[frame] for shard, frame in rows])
        pixels = project(places.astype(np.float64))
        kept, sent = self._choose(images, places, keep, onward)
        chosen = np.take_along_axis(kept, sent, 1)[:, :, None]
        apart = pixels[:, None] - _centres()[chosen]
        with np.errstate(invalid="ignore"):
            here = on_patches(pixels[:, None], chosen)
        return Batch(
            images=torch.from_numpy(images),
            tasks=torch.from_numpy(tasks),
            normalised=torch.from_numpy(actions),
            bins=torch.from_numpy(bins(actions)),
            keep=torch.from_numpy(kept),
            onward=torch.from_numpy(sent),
            here=torch.from_numpy(here),
            offsets=torch.from_numpy(apart.astype(np.float32) / PATCH),
            places=torch.from_numpy(places),
        )

    def _choose(
        self, images: npt.NDArray[np.uint8], places: npt.NDArray[np.float32], keep: int, onward: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Patches near things first, then those that differ from the empty table, then any, by lot."""
        count = _SIDE**2
        everything = np.broadcast_to(np.arange(count), (len(images), count)).copy()
        if keep >= count:
            return everything, everything
        near = near_landmarks(places)
        thin = images[:, ::2, ::2].astype(np.int16)
        different = np.abs(thin - self._empty_table()).mean(-1)
        different = different.reshape(-1, _SIDE, PATCH // 2, _SIDE, PATCH // 2).mean((2, 4)).reshape(-1, count)
        score = self._rng.random(near.shape) * np.where(different > _DIFFERENCE, 3.0, 1.0) + 10.0 * near
        kept = np.sort(np.argpartition(-score, keep, axis=1)[:, :keep], axis=1)
        again = self._rng.random(kept.shape) + 10.0 * np.take_along_axis(near, kept, 1)
        sent = np.sort(np.argpartition(-again, onward - 1, axis=1)[:, :onward], axis=1)
        return kept, sent

    def _empty_table(self) -> npt.NDArray[np.int16]:
        if self._background is None:
            shards = list(self._shards.values())
            picked = [shards[index] for index in self._rng.integers(len(shards), size=_BACKGROUND_FRAMES)]
            frames = [shard.images[self._rng.integers(len(shard)), ::2, ::2] for shard in picked]
            self._background = np.median(np.stack(frames), axis=0).astype(np.int16)
        return self._background


def near_landmarks(places: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """places: (B, landmarks, 3) in metres, NaN where there is none. bool (B, 256): which patches are near one."""
    pixels = project(places.astype(np.float64))
    apart = np.abs(pixels[:, None] - _centres()[None, :, None]).max(-1)
    return np.asarray((np.where(np.isnan(apart), np.inf, apart) < _NEAR_PX).any(-1), dtype=np.bool_)


def on_patches(pixels: npt.NDArray[np.float64], patches: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether points (..., 2) of the picture lie on patches (...), by their numbers, or only just beside them."""
    here: npt.NDArray[np.bool_] = np.abs(pixels - _centres()[patches]).max(-1) < _HERE_PX
    return here


def _centres() -> npt.NDArray[np.float64]:
    """Pixel centres of the patches: (256, 2), x and y."""
    row, column = np.divmod(np.arange(_SIDE**2), _SIDE)
    return np.stack([column, row], 1) * PATCH + PATCH / 2


def token_ids(
    prompts: list[list[int]], tasks: Tensor, numbers: Tensor, sizes: Sizes, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Prompts and the first six action tokens, padded on the left: ids (B, W) and lengths (B,).

    tasks: (B,), indices into prompts. numbers: the bins (B, 7). noise: (B, 7), added to the bins: while it acts the
    policy reads its own tokens, which are never exactly right.
    """
    said = (numbers.float() + noise).round().long().clamp(0, ACTION_BINS - 1)
    answers = sizes.action_vocab_size - 1 - said[:, :-1]
    asked = [prompts[task] for task in tasks.tolist()]
    wide = max(map(len, asked))
    padded = torch.tensor([[0] * (wide - len(prompt)) + prompt for prompt in asked], device=answers.device)
    lengths = torch.tensor([len(prompt) for prompt in asked], device=answers.device) + answers.shape[1]
    return torch.cat([padded, answers], dim=1), lengths
