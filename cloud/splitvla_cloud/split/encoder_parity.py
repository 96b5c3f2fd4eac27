"""How far a reduced encoder is from the float32 one, and below what it is not written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from splitvla_cloud.backbone import Backbone
from splitvla_cloud.precision import Precision
from splitvla_cloud.prompt import Prompt
from splitvla_cloud.split.tensor_file import StoredTensor
from splitvla_shared.bundle import Bundle
from splitvla_shared.encoders import EXACT_INT8_SUMS, FP16
from splitvla_shared.errors import BundleError, EarlyStop
from splitvla_shared.nouns import FloatArray, Image

_AFFORDABLE_BYTES = 200_000_000  # of a language model that is run in float32 on this machine, for token agreement
_INSTRUCTION = "pick up the object"


@dataclass(frozen=True, slots=True)
class Floor:
    """Below what a variant is refused: a token's cosine to float32, on average and for the worst one of all frames.

    8-bit rounding of ordinary weights gives 0.999 and 0.997; outlying channels that drown the others give 0.8.
    """

    cosine_mean: float = 0.98
    cosine_min: float = 0.90


DEFAULT_FLOOR = Floor()
NO_FLOOR = Floor(-1.0, -1.0)  # lets everything pass that is finite


@dataclass(frozen=True, slots=True)
class Parity:
    """Against the float32 encoder on the calibration frames.

    cosine_mean, cosine_min: over tokens. relative_error: of the difference to what distinguishes tokens,
    |x - x32| / |x32 - mean token of x32|, which the large mean that all tokens share can't flatter.
    token_agreement: share of action tokens that stay the same behind the bundle's backbone, None where it was not run;
    token_agreement_note then says why.
    """

    cosine_mean: float
    cosine_min: float
    relative_error: float
    token_agreement: float | None = None
    token_agreement_note: str = ""

    def passes(self, floor: Floor) -> bool:
        """False also where a number is not finite."""
        return self.cosine_mean >= floor.cosine_mean and self.cosine_min >= floor.cosine_min

    def to_json(self) -> dict[str, Any]:
        """Rounded to what the figures mean."""
        fields = dataclasses.asdict(self).items()
        return {name: round(value, 7) if isinstance(value, float) else value for name, value in fields}


def compare(reference: FloatArray, embeddings: FloatArray) -> Parity:
    """Both (frames, patches, embed_dim), float32."""
    wanted, found = (_tokens(array) for array in (reference, embeddings))
    with np.errstate(all="ignore"):  # a variant that overflowed gives NaN here, which no floor lets pass
        norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
        cosines = np.einsum("ij,ij->i", wanted, found) / norms
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted - wanted.mean(axis=0))
    return Parity(float(cosines.mean()), float(cosines.min()), float(error))


def run_graph(name: str, path: Path, frames: list[Image], advance: Callable[[int], None]) -> FloatArray:
    """Embeddings (frames, patches, embed_dim) that ONNX Runtime gives on this machine's CPU; `advance(1)` a frame."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(*EXACT_INT8_SUMS)
    if name == FP16:  # folding the casts at load would put all weights into memory as float32, and changes no number
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    embeddings = []
    for frame in frames:
        embeddings.append(session.run(None, {"image": frame[np.newaxis]})[0][0])
        advance(1)
    return np.stack(embeddings)


class TokenJudge:
    """Action tokens of a small model for each frame's embedding; holds the loaded backbone and the float32 answers."""

    def __init__(self, cloud: Bundle, precision: Precision, reference: FloatArray) -> None:
        """Raises BundleError or ConfigError when the language half can't be loaded."""
        self._backbone = Backbone.load(cloud, precision, "cpu")
        self._ids = Prompt.load(cloud.path, cloud.spec).ids(_INSTRUCTION)
        self._dims = cloud.spec.max_action_dims
        self._wanted = [self._answer(patches) for patches in reference]

    def agreement(self, embeddings: FloatArray) -> float:
        """Share of equal tokens, 0..1; a frame that only one side answers counts as all different."""
        same = [
            np.mean([a == b for a, b in zip(self._answer(patches), wanted, strict=True)])
            for patches, wanted in zip(embeddings, self._wanted, strict=True)
        ]
        return float(np.mean(same))

    def _answer(self, patches: FloatArray) -> tuple[int, ...]:
        try:
            return tuple(self._backbone.infer(self._ids, patches, self._dims).ids)
        except EarlyStop:
            return (-1,) * self._dims


def too_large_to_run(tensors: Mapping[str, StoredTensor]) -> str:
    """Why this language model is not run for token agreement; empty when it is."""
    size = sum(int(np.prod(entry.shape)) * 4 for entry in tensors.values())
    if size <= _AFFORDABLE_BYTES:
        return ""
    return f"not run: the backbone is {size / 1e9:.1f} GB in float32, over {_AFFORDABLE_BYTES / 1e9:.1f} GB"


def check_floor(name: str, parity: Parity, floor: Floor, frames: str) -> None:
    """Raises BundleError when the variant is below the floor."""
    if not parity.passes(floor):
        raise BundleError(
            f"encoder {name}: cosine to float32 is {parity.cosine_mean:.4f} on average and {parity.cosine_min:.4f} for "
            f"the worst token of {frames}, the floor is {floor.cosine_mean} and {floor.cosine_min}; leave {name} out "
            "of --encoder, calibrate with the robot's own frames (--calibration FOLDER), or pass --allow-poor-encoder"
        )


def _tokens(array: FloatArray) -> npt.NDArray[np.float64]:
    return array.reshape(-1, array.shape[-1]).astype(np.float64)
