"""The golden probe: fixed inputs made by integer formulas, and what the robot's half must answer to them.

Rules of this file: inputs come from 32-bit integer arithmetic alone, so that every machine makes the same ones and no
bundle has to store them; changing a formula makes every bundle fail its probe, so it comes with a new PROBE_FORMAT.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import FloatArray, Image

PROBE_FILE = "probe.json"
PROBE_FORMAT = "splitvla-probe/1"
_DIRECTIONS = 8
_CODES_RMS = math.sqrt((256**2 - 1) / 12)  # of numbers spread evenly over -128..127
_SIGNIFICANT = 7  # decimals of float32: what a JSON number of a projection keeps


def probe_image(size: int) -> Image:
    """uint8 RGB (size, size, 3): slanted ramps, another in each channel, under noise of a quarter of the range."""
    row, column, channel = np.indices((size, size, 3), dtype=np.int64)
    ramp = (3 * column + 5 * row + 64 * channel) % 192
    noise = _mixed(size * size * 3, seed=1).reshape(size, size, 3) >> np.uint32(26)
    image: Image = (ramp + noise).astype(np.uint8)
    return image


def probe_patches(patches: int, dim: int, scale: float) -> FloatArray:
    """float32 (patches, dim): whole numbers -128..127 times `scale`, a power of two: exact in bfloat16."""
    codes = (_mixed(patches * dim, seed=2) >> np.uint32(24)).astype(np.int64) - 128
    return (codes.astype(np.float32) * np.float32(scale)).reshape(patches, dim)


def probe_scale(patches: FloatArray) -> float:
    """The power of two at which `probe_patches` is about as loud as these embeddings."""
    rms = float(np.sqrt(np.mean(np.square(patches, dtype=np.float64))))
    return float(2.0 ** round(math.log2(rms / _CODES_RMS))) if rms > 0 else 1.0


def probe_said(action_ids: range, count: int) -> tuple[int, ...]:
    """`count` of the action ids, drawn by formula: what the model is told that it has said so far."""
    return tuple(action_ids[int(number) % len(action_ids)] for number in _mixed(count, seed=3))


@dataclass(frozen=True, slots=True)
class EdgeProbe:
    """What the encoder answers to `probe_image`.

    projection: float32 (patches, 8), each row's products with fixed vectors of +-1 over the root of the width: every
    number of the embedding takes part, and distances keep their size within a few per cent (Johnson-Lindenstrauss).
    """

    projection: FloatArray

    @classmethod
    def of(cls, patches: FloatArray) -> EdgeProbe:
        """patches: float32 (patches, embed_dim), the embedding of `probe_image`."""
        dim = patches.shape[1]
        signs = 1.0 - 2.0 * (_mixed(dim * _DIRECTIONS, seed=4) >> np.uint32(31)).astype(np.float64)
        projected = patches.astype(np.float64) @ (signs.reshape(dim, _DIRECTIONS) / math.sqrt(dim))
        return cls(projected.astype(np.float32))

    def difference(self, other: EdgeProbe) -> float:
        """Distance of the other answer from this one, as a share of this one's length; infinite for another shape."""
        if self.projection.shape != other.projection.shape:
            return math.inf
        mine = self.projection.astype(np.float64)
        length = float(np.linalg.norm(mine))
        distance = float(np.linalg.norm(other.projection - mine))
        return distance / length if length > 0 else math.inf * distance if distance else 0.0

    def save(self, folder: Path) -> None:
        rows = [[float(f"{value:.{_SIGNIFICANT}g}") for value in row] for row in self.projection.tolist()]
        write_probe(folder, {"projection": rows})

    @classmethod
    def load(cls, folder: Path) -> EdgeProbe:
        """Raises BundleError when the bundle has no probe, or one that this version does not read."""
        data = read_probe(folder, ("projection",))
        try:
            projection = np.array(data["projection"], dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise BundleError(f"{folder / PROBE_FILE}: projection is no table of numbers; split again") from error
        if projection.ndim != 2 or projection.shape[1] != _DIRECTIONS or not np.isfinite(projection).all():
            raise BundleError(f"{folder / PROBE_FILE}: projection has shape {projection.shape}; split again")
        return cls(projection)


def blindness(black: Sequence[Sequence[int]], white: Sequence[Sequence[int]]) -> str | None:
    """Why a model that gave these tokens, one row an instruction, for a black and a white image must not drive a robot.

    None for a model that sees: one differing token is enough, because with some instructions both may mean "stay".
    """
    if [list(row) for row in black] != [list(row) for row in white]:
        return None
    shown = " ".join(str(number) for number in (black[0] if black else ()))
    return (
        f"blind: a black and a white image give the same tokens for each of {len(black)} instructions ({shown}); "
        "the picture does not reach the answer: the projector or the vision weights are damaged, or not of this model"
    )


def write_probe(folder: Path, data: Mapping[str, Any]) -> None:
    (folder / PROBE_FILE).write_text(json.dumps({"format": PROBE_FORMAT, **data}) + "\n", encoding="utf-8")


def read_probe(folder: Path, fields: Sequence[str]) -> dict[str, Any]:
    """The JSON object that `write_probe` wrote, with at least these fields. Raises BundleError."""
    file = folder / PROBE_FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} has no {PROBE_FILE}: made by an older version, so that its answers can't be checked; split again"
        ) from error
    except OSError as error:
        raise BundleError(f"{file} can't be read: {error.strerror}; check its permissions") from error
    except ValueError as error:
        raise BundleError(f"{file} is not valid JSON ({error}); split again") from error
    if not isinstance(data, dict) or data.get("format") != PROBE_FORMAT or any(name not in data for name in fields):
        raise BundleError(f"{file} is no {PROBE_FORMAT} with {', '.join(fields)}; split again with this version")
    return data


def _mixed(count: int, seed: int) -> npt.NDArray[np.uint32]:
    """`count` well mixed 32-bit numbers: the finaliser of MurmurHash3 over a counter."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.full(count, seed * 0x85EBCA6B % 2**32, np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    mixed: npt.NDArray[np.uint32] = x ^ (x >> np.uint32(16))
    return mixed
