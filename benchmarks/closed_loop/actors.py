"""Who acts in the world: the split policy over gRPC, the unsplit reference, and wrappers that take senses away."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from splitvla_shared.errors import ConfigError, DeadlineMissed, Unreachable
from splitvla_shared.nouns import ActionChunk, Observation

if TYPE_CHECKING:  # it brings torch, which only the reference needs
    from splitvla_cloud.verify.unsplit import Answer

PRECISIONS = ("fp32", "bf16")  # of the unsplit model
_RETRIES, _PAUSE_S = 10, 0.5
_SHOWN = 10  # differences in a note


class Actor(Protocol):
    def act(self, observation: Observation) -> ActionChunk:
        """Raises SplitVLAError when there is no action."""


class Policy(Protocol):
    """What is asked of EdgePolicy."""

    def act(self, observation: Observation, *, deadline_s: float) -> ActionChunk: ...


class SplitActor:
    """The product: encoder here, codec, gRPC, backbone in the server process.

    The world waits, so a call that found no connection, or no answer in time, is made again: what is measured in
    lockstep is what the model says, not the machine's load.
    """

    def __init__(
        self,
        policy: Policy,
        deadline_s: float = 30.0,
        pause: Callable[[float], None] = time.sleep,
        retries: int = _RETRIES,
    ) -> None:
        self._policy, self._deadline_s, self._pause, self._retries = policy, deadline_s, pause, retries

    def act(self, observation: Observation) -> ActionChunk:
        for _ in range(self._retries):
            with contextlib.suppress(Unreachable, DeadlineMissed):
                return self._policy.act(observation, deadline_s=self._deadline_s)
            self._pause(_PAUSE_S)
        return self._policy.act(observation, deadline_s=self._deadline_s)


class UnsplitActor:
    """The reference: the checkpoint's own files through splitvla_cloud.verify.unsplit, nothing of a bundle."""

    def __init__(self, checkpoint: Path, precision: str = "fp32", unnorm_key: str | None = None) -> None:
        """Raises CheckpointError, and ConfigError for a precision that the reference does not have."""
        import torch

        from splitvla_cloud.split.checkpoint import Checkpoint
        from splitvla_cloud.verify.unsplit import UnsplitBackbone, UnsplitEncoder

        if precision not in PRECISIONS:
            raise ConfigError(f"the unsplit model has no precision {precision!r}; one of {', '.join(PRECISIONS)}")
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self._source = Checkpoint.open(checkpoint)
        self._encoder = UnsplitEncoder(self._source, dtype)
        self._backbone = UnsplitBackbone(self._source, dtype, "cpu")
        self._statistics = _choose(self._source.statistics, unnorm_key)
        self._dims = len(self._statistics["action"]["q01"])

    def act(self, observation: Observation) -> ActionChunk:
        from splitvla_cloud.verify.unsplit import actions

        tokens = self.answer(observation).tokens
        return ActionChunk(
            observation.step, actions(tokens, self._source, self._statistics)[None], "unsplit", tokens=tokens
        )

    def answer(self, observation: Observation) -> Answer:
        """Its tokens, and how sure it was of each."""
        from splitvla_cloud.verify.unsplit import prompt_ids, square

        seen = self._encoder.see(square(observation.images[0], self._source.vision))
        return self._backbone.answer(prompt_ids(self._source, observation.instruction), seen.patches, self._dims)


class Blind:
    """Shows its actor a black picture instead of the world."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def act(self, observation: Observation) -> ActionChunk:
        black = tuple(np.zeros_like(image) for image in observation.images)
        return self._actor.act(dataclasses.replace(observation, images=black))


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an answer first differs from the reference's: its step of the run, the dimension, and both tokens.

    margin: of the reference's token over its second-best, in standard deviations of its logits there.
    """

    step: int
    dimension: int
    token: int
    expected: int
    margin: float

    def __str__(self) -> str:
        return f"step {self.step}, dimension {self.dimension}: {self.token} for {self.expected}, {self.margin:.1e}"


class Reference(Protocol):
    def answer(self, observation: Observation) -> Answer: ...


class Compared:
    """Acts by `actor`, and asks `reference` the same on every step. Mutable state: the steps, and what differed."""

    def __init__(self, actor: Actor, reference: Reference) -> None:
        self._actor, self._reference = actor, reference
        self.steps = 0
        self.differences: list[Difference] = []

    def act(self, observation: Observation) -> ActionChunk:
        chunk = self._actor.act(observation)
        expected = self._reference.answer(observation)
        pairs = zip(chunk.tokens, expected.tokens, strict=True)
        first = next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
        if first is not None:
            margin = float(expected.margins[first] / expected.spread[first])
            self.differences.append(Difference(self.steps, first, chunk.tokens[first], expected.tokens[first], margin))
        self.steps += 1
        return chunk

    def note(self) -> str:
        said = f"Tokens: {len(self.differences)} of {self.steps} steps differ from the unsplit model's"
        if not self.differences:
            return f"{said}."
        each = "; ".join(map(str, self.differences[:_SHOWN]))
        return f"{said} (first token that differs, and the unsplit model's margin in standard deviations: {each})."


def _choose(statistics: Mapping[str, Any], key: str | None) -> Mapping[str, Any]:
    if key is None and len(statistics) == 1:
        (key,) = statistics
    if key is None or key not in statistics:
        raise ConfigError(f"unnorm key {key!r}: name one of {', '.join(statistics)}")
    chosen: Mapping[str, Any] = statistics[key]
    return chosen
