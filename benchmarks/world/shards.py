"""Frames on disk: a shard is a folder of arrays that is complete once it has its final name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from splitvla_edge.robots.metaworld.tasks import BALLS, TASKS, Position
from splitvla_shared.nouns import ActionArray, Image

TASK_NAMES = tuple(TASKS)
# What the vision is told about while it learns. An environment's own object counts as another thing in each scene.
OBJECTS: Mapping[str, str] = {
    "button": "button",
    "drawer-open": "drawer",
    "drawer-close": "drawer",
    "faucet-left": "faucet",
    "faucet-right": "faucet",
    "push": "puck",
}
LANDMARKS = ("hand", "fingers", *BALLS, "button", "drawer", "faucet", "puck", "goal")


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame, what the expert would do, and where things are."""

    image: Image
    task: str
    action: ActionArray
    landmarks: Mapping[str, Position]


@dataclass(frozen=True, slots=True)
class Shard:
    """images: uint8 (n, 224, 224, 3), mapped. tasks: indices into TASK_NAMES. actions: (n, 7).

    landmarks: (n, len(LANDMARKS), 3) in metres, NaN where the scene has no such thing.
    """

    images: npt.NDArray[np.uint8]
    tasks: npt.NDArray[np.int64]
    actions: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.tasks)

    def pictures(self) -> npt.NDArray[np.int64]:
        """(m,): the first sample of every picture. Samples of one picture follow each other, see `generate.labelled`:
        one for each ball where there are balls.
        """
        balls = np.isin(self.tasks, [TASK_NAMES.index(name) for name, task in TASKS.items() if task.ball is not None])
        place = np.cumsum(balls) - 1
        return np.flatnonzero(~balls | (place % len(BALLS) == 0))

    @classmethod
    def open(cls, path: Path) -> Shard:
        images = np.load(path / "images.npy", mmap_mode="r")
        return cls(images, *(np.load(path / f"{name}.npy") for name in ("tasks", "actions", "landmarks")))


def write_shard(path: Path, samples: Sequence[Sample]) -> None:
    """The folder appears under its name when everything is in it."""
    part = path.with_name(f".{path.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    np.save(part / "images.npy", np.stack([sample.image for sample in samples]))
    np.save(part / "tasks.npy", np.array([TASK_NAMES.index(sample.task) for sample in samples]))
    np.save(part / "actions.npy", np.stack([sample.action for sample in samples]).astype(np.float32))
    np.save(part / "landmarks.npy", np.stack([_landmarks(sample) for sample in samples]).astype(np.float32))
    part.replace(path)


def shard_paths(folder: Path) -> list[Path]:
    """The complete shards of a folder, in the order of their names."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def _landmarks(sample: Sample) -> ActionArray:
    places = np.full((len(LANDMARKS), 3), np.nan)
    for name, place in sample.landmarks.items():
        places[LANDMARKS.index(OBJECTS[sample.task] if name == "object" else name)] = place
    return places
