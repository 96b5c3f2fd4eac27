"""The golden probe of the GPU host's half: is what this GPU, driver and precision compute still the model?

Rules of this file: the model is told what it has said (teacher forcing), so that one forward pass judges every position
and one early slip does not decide the rest; it is judged by the correlation of its logits with the unsplit model's, for
a reduced precision may order near-equal ids anew, but its logits as a whole stay what they were. Robots are answered
step by step, out of the cache and from captured graphs, so that such an answer is held against one forward pass too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from splitvla_cloud.precision import Precision
from splitvla_shared.errors import BundleError, ServerFault
from splitvla_shared.nouns import FloatArray
from splitvla_shared.probe import PROBE_FILE, probe_patches, read_probe, write_probe
from splitvla_shared.spec import ModelSpec

INSTRUCTION = "put the red block into the white bowl"
# Lowest correlation of logits, averaged over the positions; another input gives 0 to 0.2. How far rounding moves logits
# depends on the depth: seven checkpoints of random weights, which it hurts most, gave 0.9998 (2 layers) to 0.970 (12)
# in bf16, 0.997 to 0.91 in int8, 0.87 to 0.41 in nf4; six of 2 to 8 layers gave 0.97 to 0.79 in fp8, four of
# 2 to 12 layers 0.70 to 0.31 in int4, both computed on a CPU.
# A model that was split right must never be refused, so a reduced precision is held only against gross faults; damage
# on disk is found by SHA-256 before.
FLOORS: Mapping[Precision, float] = {"fp32": 0.999, "bf16": 0.8, "int8": 0.5, "nf4": 0.25, "fp8": 0.4, "int4": 0.25}
# Step by step and at once it is the same weights, so that only the order of rounding differs: random weights of 2
# and 12 layers gave 1.0 in every precision, but for 0.971 in int8 with 12.
_STEPWISE_FLOOR = 0.7  # where the precision's own floor is lower
_SAMPLED = 128  # of the action ids, and as many of the others


class Scorer(Protocol):
    """What is probed: a loaded backbone."""

    precision: Precision
    allowed: range  # ids that an answer may hold

    def score(self, prompt_ids: Sequence[int], patches: FloatArray, ids: Sequence[int]) -> FloatArray:
        """Teacher-forced logits, float32 (len(ids), vocabulary)."""

    def full_answer(self, prompt_ids: Sequence[int], patches: FloatArray, dims: int) -> tuple[int, ...]:
        """Ids as robots are answered, without a draft; an early end is an id like any other."""

    def describe(self) -> str: ...


@dataclass(frozen=True, slots=True)
class CloudProbe:
    """What the unsplit language model in float32 answers to `probe_patches` at `scale` and an instruction.

    said: what it was told it has said. expected: its best id at each position; margins: by how much that one leads.
    logits: float32 (len(said), len(ids)), of these ids at each position: half of them actions, half from all others.
    """

    instruction: str
    prompt_ids: tuple[int, ...]
    scale: float
    said: tuple[int, ...]
    expected: tuple[int, ...]
    margins: tuple[float, ...]
    ids: tuple[int, ...]
    logits: FloatArray

    @classmethod
    def of(
        cls, prompt_ids: Sequence[int], scale: float, said: Sequence[int], actions: range, logits: FloatArray
    ) -> CloudProbe:
        """logits: float32 (len(said), vocabulary) of the unsplit model. actions: its action ids."""
        top = np.sort(logits, axis=-1)[:, -2:]
        ids = (*_spread_over(actions), *_spread_over(range(actions.start)))
        return cls(
            instruction=INSTRUCTION,
            prompt_ids=tuple(prompt_ids),
            scale=scale,
            said=tuple(said),
            expected=tuple(int(number) for number in logits.argmax(axis=-1)),
            margins=tuple(float(f"{value:.6g}") for value in top[:, 1] - top[:, 0]),
            ids=ids,
            logits=logits[:, list(ids)],
        )

    def save(self, folder: Path) -> None:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        rows = [[float(f"{value:.7g}") for value in row] for row in self.logits.tolist()]
        write_probe(folder, fields | {"logits": rows})

    @classmethod
    def load(cls, folder: Path) -> CloudProbe:
        """Raises BundleError when the bundle has no probe, or one that this version does not read."""
        data = read_probe(folder, tuple(cls.__dataclass_fields__))
        try:
            probe = cls(
                str(data["instruction"]),
                tuple(int(number) for number in data["prompt_ids"]),
                float(data["scale"]),
                tuple(int(number) for number in data["said"]),
                tuple(int(number) for number in data["expected"]),
                tuple(float(number) for number in data["margins"]),
                tuple(int(number) for number in data["ids"]),
                np.array(data["logits"], dtype=np.float32),
            )
        except (TypeError, ValueError) as error:
            raise BundleError(f"{folder / PROBE_FILE} is damaged ({error}); split again") from error
        count = len(probe.said)
        shapes = {(len(probe.expected), len(probe.margins)), (count, count)}
        if len(shapes) > 1 or not count or probe.logits.shape != (count, len(probe.ids)):
            raise BundleError(f"{folder / PROBE_FILE} is damaged: its rows differ in length; split again")
        return probe

    def correlation(self, logits: FloatArray) -> FloatArray:
        """Of each position's logits, float32 (len(said), vocabulary), with the unsplit model's; float64, at most 1."""
        mine, theirs = (_centred(rows) for rows in (self.logits, logits[:, list(self.ids)]))
        lengths = np.linalg.norm(mine, axis=-1) * np.linalg.norm(theirs, axis=-1)
        result: FloatArray = (mine * theirs).sum(axis=-1) / np.maximum(lengths, np.finfo(np.float64).tiny)
        return result


def check_backbone(backbone: Scorer, prompt_ids: Sequence[int], spec: ModelSpec, folder: Path) -> None:
    """Run the probe of the bundle in `folder`; prompt_ids: of INSTRUCTION, as this server's tokenizer makes them.

    Raises BundleError when the bundle has no probe or its tokenizer gives another prompt, and ServerFault when the
    backbone answers differently.
    """
    probe = CloudProbe.load(folder)
    if tuple(prompt_ids) != probe.prompt_ids:
        raise BundleError(
            f"golden probe: the prompt {probe.instruction!r} has the ids {list(prompt_ids)}, `split` found "
            f"{list(probe.prompt_ids)}; another version of tokenizers? split again"
        )
    patches = probe_patches(spec.patches, spec.embed_dim, probe.scale)
    logits = backbone.score(prompt_ids, patches, probe.said)
    if not np.isfinite(logits).all():
        raise ServerFault(f"golden probe: logits are not finite ({backbone.describe()}); try another precision")
    alike, floor = probe.correlation(logits), FLOORS[backbone.precision]
    if not alike.mean() >= floor:
        worst = int(alike.argmin())
        raise ServerFault(
            f"golden probe: this backbone ({backbone.describe()}) is not the model that was split: its logits "
            f"correlate by {alike.mean():.4f} with that model's, at least {floor:g} is asked for; worst at position "
            f"{worst + 1}: expected {probe.expected[worst]}, got {int(logits[worst].argmax())}; check the GPU and its "
            "libraries, try another precision, or split again"
        )

    _check_served(backbone, prompt_ids, patches, len(probe.said))


def _check_served(backbone: Scorer, prompt_ids: Sequence[int], patches: FloatArray, dims: int) -> None:
    """Raises ServerFault where an answer as robots get it is not what one forward pass over it computes."""
    ids = backbone.full_answer(prompt_ids, patches, dims)
    logits = backbone.score(prompt_ids, patches, ids)
    near = _nearness(ids, logits, backbone.allowed)
    floor = max(_STEPWISE_FLOOR, FLOORS[backbone.precision])
    if not near.mean() >= floor:
        worst, allowed = int(near.argmin()), backbone.allowed
        best = allowed.start + int(logits[worst, allowed.start : allowed.stop].argmax())
        raise ServerFault(
            f"golden probe: what this backbone ({backbone.describe()}) answers step by step is not what it computes at "
            f"once: its ids come to {near.mean():.4f} of the best ones' logits, at least {floor:g} is asked for; worst "
            f"at position {worst + 1}: id {ids[worst]}, at once {best}; check the GPU and its libraries, try another "
            "precision"
        )


def _nearness(ids: Sequence[int], logits: FloatArray, allowed: range) -> FloatArray:
    """Where the logit of each id lies between the mean (0) and the best (1) of those allowed at its position; float64.

    As much below 1, on the average, as the correlation of these logits with those that the ids were picked by.
    """
    rows = logits[:, allowed.start : allowed.stop].astype(np.float64)
    said, mean = logits[np.arange(len(ids)), list(ids)], rows.mean(axis=-1)
    result: FloatArray = (said - mean) / np.maximum(rows.max(axis=-1) - mean, np.finfo(np.float64).tiny)
    return result


def _spread_over(ids: range) -> tuple[int, ...]:
    """At most _SAMPLED of the ids, evenly."""
    step = max(1, len(ids) // _SAMPLED)
    return tuple(ids[::step][:_SAMPLED])


def _centred(rows: FloatArray) -> FloatArray:
    wide = rows.astype(np.float64)
    result: FloatArray = wide - wide.mean(axis=-1, keepdims=True)
    return result
