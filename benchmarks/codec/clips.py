"""Clips of frames as a split model sees them, and both halves of that model in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.frames import read_frames
from splitvla_cloud.answer_sensitivity import Answered, answer_sensitivity
from splitvla_cloud.backbone import Backbone, load_model
from splitvla_cloud.prompt import Prompt
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.robots.metaworld.tasks import TASKS
from splitvla_shared.bundle import open_bundle
from splitvla_shared.codec.sensitivity import SENSITIVITY_FILE, Sensitivity, load_sensitivity
from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import FloatArray, Image
from splitvla_shared.preprocess.images import to_square
from splitvla_shared.spec import Resize

_OTHERWISE = "pick up the object"
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Source:
    """A video, a folder of images, or a folder with images.npy (n, S, S, 3), of which every Nth frame is taken.

    Written as PATH or PATH@N. A name that ends in a task of TASKS has that task's instruction.
    """

    path: Path
    every: int = 1

    @classmethod
    def parse(cls, text: str) -> Source:
        path, at, every = text.rpartition("@")
        return cls(Path(path), int(every)) if at and every.isdigit() else cls(Path(text))

    @property
    def instruction(self) -> str:
        named = (name for name in sorted(TASKS, key=len, reverse=True) if self.path.name.endswith(name))
        return TASKS[name].instruction if (name := next(named, "")) else _OTHERWISE

    def squares(self, size: int, most: int) -> list[Image]:
        """At most `most` frames, uint8 (size, size, 3), none of which repeats the one before."""
        stored = self.path / "images.npy"
        frames = np.load(stored, mmap_mode="r") if stored.is_file() else read_frames(self.path)
        squares: list[Image] = []
        for frame in frames[:: self.every]:
            whole = np.ascontiguousarray(frame)
            square = whole if whole.shape == (size, size, 3) else to_square(whole, size, Resize.NAIVE)
            if not squares or (square != squares[-1]).any():
                squares.append(square)
            if len(squares) == most:
                break
        return squares


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Frames as the model sees them, uint8 (S, S, 3), their exact embeddings, and the tokens of those."""

    instruction: str
    frames: list[Image]
    embeddings: list[FloatArray]
    tokens: list[Tokens]

    def part(self, frames: slice) -> Clip:
        return Clip(self.instruction, self.frames[frames], self.embeddings[frames], self.tokens[frames])


class Model:
    """Both halves of a split model, in one process. Raises BundleError."""

    def __init__(self, bundles: Path) -> None:
        edge, cloud = open_bundle(bundles / "edge", "edge"), open_bundle(bundles / "cloud", "cloud")
        sensitivity = load_sensitivity(edge)
        if sensitivity is None:
            raise BundleError(f"{edge.path} has no {SENSITIVITY_FILE}; split again")
        self.spec, self.first_layer = edge.spec, sensitivity
        self._encoder = OnnxEncoder(edge, 1)
        self._language, device = load_model(cloud, "fp32", "cpu")
        self._backbone = Backbone(self._language, "fp32", device)
        self._prompt = Prompt.load(cloud.path, cloud.spec)

    def embed(self, frame: Image) -> FloatArray:
        return self._encoder.embed(frame)

    def tokens(self, instruction: str, patches: FloatArray) -> Tokens:
        ids = self._prompt.ids(instruction)
        return np.array(self._backbone.full_answer(ids, patches, self.spec.max_action_dims))

    def clip(self, source: Source, most: int) -> Clip:
        """At most `most` frames of a source, with what the model makes of them."""
        frames = source.squares(self.spec.image_size, most)
        embeddings = [self.embed(frame) for frame in frames]
        tokens = [self.tokens(source.instruction, each) for each in embeddings]
        return Clip(source.instruction, frames, embeddings, tokens)

    def answers(self, clips: Sequence[Clip], every: int = 2) -> Sensitivity:
        """What the answers to `clips` make of an error, asked of every `every`th frame."""
        return answer_sensitivity(
            self._language,
            (
                Answered(self._prompt.ids(clip.instruction), patches, tokens.tolist())
                for clip in clips
                for patches, tokens in zip(clip.embeddings[::every], clip.tokens[::every], strict=True)
            ),
        )
