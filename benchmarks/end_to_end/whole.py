"""The whole model on one machine, twice: as users run it today (PyTorch, transformers), and with our engines.

Both take a camera frame of any size and give the reference's greedy tokens; nothing is split and nothing is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import torch

from splitvla_cloud.backbone import Backbone
from splitvla_cloud.precision import NUMERICS, keep_libraries_offline_and_quiet, parse_precision, select_device
from splitvla_cloud.prompt import Prompt
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.verify.unsplit import UnsplitBackbone, UnsplitEncoder, prompt_ids, square
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.model import read_edge_model
from splitvla_shared.actions import ActionStatistics, detokenize, parse_statistics, select_statistics
from splitvla_shared.bundle import open_bundle
from splitvla_shared.nouns import ActionArray, FloatArray, Image
from splitvla_shared.preprocess.image_pipelines import build_pipeline

EngineName = Literal["eager", "split"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """checkpoint: for "eager". bundles: the folder with edge/ and cloud/, for "split". threads: of the arithmetic."""

    engine: EngineName
    checkpoint: Path
    bundles: Path
    unnorm_key: str | None = None
    precision: str = "fp32"
    device: str = "auto"
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Acted:
    """One action, float64 (dims,), its tokens, and where the time went in milliseconds.

    clipped: indices of tokens that are no action token.
    """

    tokens: tuple[int, ...]
    action: ActionArray
    encode_ms: float
    backbone_ms: float
    clipped: tuple[int, ...] = ()


class Whole(Protocol):
    """A whole policy. One thread at a time."""

    def act(self, image: Image, instruction: str) -> Acted:
        """uint8 RGB (height, width, 3) to one action."""


def open_whole(settings: EngineSettings) -> Whole:
    """Load a whole model. Raises CheckpointError, BundleError, ConfigError or ObservationError."""
    torch.set_num_threads(settings.threads)
    return ENGINES[settings.engine](settings)


class EagerWhole:
    """The checkpoint in PyTorch: both towers and the projector, then transformers' `generate`, eagerly.

    What openvla's deploy.py runs, without the two tower blocks whose result it throws away.
    """

    def __init__(self, settings: EngineSettings) -> None:
        keep_libraries_offline_and_quiet()
        source = Checkpoint.open(settings.checkpoint)
        dtype, device = NUMERICS[parse_precision(settings.precision)].dtype, select_device(settings.device)
        self._vision = source.vision
        self._encoder = UnsplitEncoder(source, dtype, device)
        self._backbone = UnsplitBackbone(source, dtype, device)
        self._prompt: Callable[[str], tuple[int, ...]] = lru_cache(64)(lambda text: prompt_ids(source, text))
        self._numbers = _Numbers(
            select_statistics(parse_statistics(source.statistics), settings.unnorm_key),
            source.action_vocab_size,
            source.action_bins,
        )

    def act(self, image: Image, instruction: str) -> Acted:
        started = time.perf_counter()
        patches = self._encoder.see(square(image, self._vision)).patches
        encoded = time.perf_counter()
        tokens = self._backbone.tokens(self._prompt(instruction), patches, self._numbers.statistics.dims)
        return self._numbers.acted(tokens, started, encoded)


class SplitWhole:
    """Both halves of a bundle on one machine: ONNX encoder and this project's backbone, with nothing in between.

    Mutable state: the last answer, which is the next one's draft as it is for the split (`EdgePolicy`).
    """

    def __init__(self, settings: EngineSettings) -> None:
        edge = open_bundle(settings.bundles / "edge", "edge")
        cloud = open_bundle(settings.bundles / "cloud", "cloud")
        model = read_edge_model(edge, settings.unnorm_key)
        self._square = build_pipeline(model.image_pipeline, "none", model.spec, model.fill)
        self._encoder = OnnxEncoder(edge, settings.threads)
        self._backbone = Backbone.load(cloud, parse_precision(settings.precision), settings.device)
        self._backbone.warm_up(model.spec.patches, model.statistics.dims)
        self._prompt = Prompt.load(cloud.path, cloud.spec)
        self._numbers = _Numbers(model.statistics, model.spec.action_vocab_size, model.spec.action_bins)
        self._draft: tuple[int, ...] = ()

    def act(self, image: Image, instruction: str) -> Acted:
        started = time.perf_counter()
        patches: FloatArray = self._encoder.embed(self._square(image))
        encoded = time.perf_counter()
        ids = self._prompt.ids(instruction)
        draft, self._draft = self._draft, ()  # none after an error
        tokens = self._backbone.infer(ids, patches, self._numbers.statistics.dims, draft).ids
        acted = self._numbers.acted(tokens, started, encoded)
        self._draft = () if acted.clipped else tokens
        return acted


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Tokens to the robot's units."""

    statistics: ActionStatistics
    vocab_size: int
    bins: int

    def acted(self, tokens: tuple[int, ...], started: float, encoded: float) -> Acted:
        said = detokenize(tokens, vocab_size=self.vocab_size, bins=self.bins)
        action = self.statistics.unnormalize(said.normalized)
        ended = time.perf_counter()
        return Acted(tokens, action, (encoded - started) * 1e3, (ended - encoded) * 1e3, said.clipped)


ENGINES: dict[EngineName, Callable[[EngineSettings], Whole]] = {"eager": EagerWhole, "split": SplitWhole}
