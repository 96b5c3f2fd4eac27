"""What calibration learned about a robot's frames, as both machines hold it: mean, basis, steps, probability tables.

One file, `codec.npz`, the same bytes in both bundles; its SHA-256 is part of the fingerprint. Whatever decides
what is on the wire is an integer here. Floats only turn coefficients into numbers on the robot, and numbers into an
embedding on the server: there a rounding makes a rounding, never another number.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from splitvla_shared.archives import read_arrays
from splitvla_shared.codec import rans
from splitvla_shared.codec.tokens import PAIR_TOKENS, QUAD_TOKENS, SINGLE_TOKENS, Grouping
from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import FloatArray

# The second has weights of the patches; tables without are written in the first, which older versions read.
FORMATS = (1, 2)
# Scales are half octaves of the expected magnitude of a number, in steps of the quantiser: 2^((scale - 16) / 2).
SCALE_ZERO = 16
SINGLE_SCALES, JOINT_SCALES = 48, 28  # a sparse column's expectation is small, so joint tables need fewer
ROW_LEVELS, ROW_MIDDLE = 9, 4  # a row may be up to four half octaves quieter or louder than its columns say
REFERENCE_LEVELS = 4  # magnitude of the reference: 0, 1, 2, 3 or more
GAIN_BITS = 8  # predictions are reference * gain / 2^8

# Contexts: one for the rows' levels, two for excesses (of pairs, of quads), then the scales of each kind of token.
ROW_CONTEXT, EXCESS_CONTEXT, FIRST_CONTEXT = 0, 1, 3
CONTEXTS = FIRST_CONTEXT + SINGLE_SCALES + 2 * JOINT_SCALES
ALPHABETS = (
    (ROW_LEVELS,)
    + (SINGLE_TOKENS,) * 2
    + (SINGLE_TOKENS,) * SINGLE_SCALES
    + (PAIR_TOKENS,) * JOINT_SCALES
    + (QUAD_TOKENS,) * JOINT_SCALES
)
MAX_RUNGS, MAX_COLUMNS, MAX_LANES = 16, 4096, 2048
_LARGEST = 1e30


@dataclass(frozen=True, slots=True, eq=False)
class RungTables:
    """How one rung codes the first `grouping.columns` coefficients.

    step: of the quantiser. lanes: of the entropy coder. key_scales, predicted_scales: uint8 (groups,), for frames that
    stand alone and for differences. gains: uint16 (columns,), of the prediction. reference_offsets: int8 (3, 4): what a
    reference of that magnitude adds to the scale, for singles, pairs and quads.
    """

    name: str
    step: float
    lanes: int
    grouping: Grouping
    key_scales: npt.NDArray[np.uint8]
    predicted_scales: npt.NDArray[np.uint8]
    gains: npt.NDArray[np.uint16]
    reference_offsets: npt.NDArray[np.int8]

    @property
    def kinds(self) -> npt.NDArray[np.intp]:
        """0, 1 or 2 for each group: single, pair, quad."""
        return np.repeat(np.arange(3), (self.grouping.singles, self.grouping.pairs, self.grouping.quads))


@dataclass(frozen=True, slots=True, eq=False)
class CodecTables:
    """mean: float32 (patches, dim). analysis, synthesis: float32 (dim, columns); equal for an orthonormal basis.

    counts: uint32 (CONTEXTS, MAX alphabet), out of 2^12. sha256: of the file's bytes.
    channel_mean: float32 (dim,), what coefficients are counted from. patch_weights: float32 (patches,), by which a
    patch is sent finer than the steps say; None: all as they say.
    """

    mean: FloatArray
    analysis: FloatArray
    synthesis: FloatArray
    counts: npt.NDArray[np.uint32]
    rungs: tuple[RungTables, ...]
    sha256: str = ""
    patch_weights: FloatArray | None = None
    probabilities: rans.Tables = field(init=False)
    channel_mean: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "probabilities", rans.Tables.of(self.counts))
        mean = np.asarray(self.mean.mean(axis=0, dtype=np.float64), np.float32)
        object.__setattr__(self, "channel_mean", mean)

    @property
    def shape(self) -> tuple[int, int]:
        """(patches, embed_dim) of one camera."""
        rows, dim = self.mean.shape
        return rows, dim

    @property
    def columns(self) -> int:
        return int(self.analysis.shape[1])

    def coefficients(self, patches: FloatArray) -> FloatArray:
        """float32 (patches, dim) to (patches, columns), as an encoder with the basis folded in gives them."""
        return np.asarray((patches - self.channel_mean) @ self.analysis, np.float32)

    def to_bytes(self) -> bytes:
        """The file. Raises nothing: what was checked can be written."""
        arrays: dict[str, Any] = {
            "format": np.array(FORMATS[self.patch_weights is not None], np.int64),
            "mean": self.mean,
            "analysis": self.analysis,
            "counts": self.counts,
        }
        if self.synthesis is not self.analysis:
            arrays["synthesis"] = self.synthesis
        if self.patch_weights is not None:
            arrays["patch_weights"] = self.patch_weights
        for index, rung in enumerate(self.rungs):
            grouping = rung.grouping
            arrays |= {
                f"{index}.name": np.frombuffer(rung.name.encode("ascii"), np.uint8),
                f"{index}.step": np.array(rung.step, np.float32),
                f"{index}.layout": np.array([rung.lanes, grouping.singles, grouping.pairs, grouping.quads], np.int64),
                f"{index}.key_scales": rung.key_scales,
                f"{index}.predicted_scales": rung.predicted_scales,
                f"{index}.gains": rung.gains,
                f"{index}.reference_offsets": rung.reference_offsets,
            }
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **arrays)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> CodecTables:
        """Read what `to_bytes` wrote. Raises BundleError on anything else; no pickle is ever loaded."""
        try:
            arrays = read_arrays(io.BytesIO(data))
            version = int(arrays["format"])
            if version not in FORMATS:
                raise BundleError(f"codec tables of format {version}; this version reads {FORMATS[0]}..{FORMATS[-1]}")
            analysis = arrays["analysis"]
            rungs: list[RungTables] = []
            while f"{len(rungs)}.name" in arrays:
                rungs.append(_read_rung(arrays, len(rungs)))
            return cls(
                mean=arrays["mean"],
                analysis=analysis,
                synthesis=arrays.get("synthesis", analysis),
                counts=arrays["counts"],
                rungs=tuple(rungs),
                sha256=hashlib.sha256(data).hexdigest(),
                patch_weights=arrays["patch_weights"] if version > FORMATS[0] else None,
            )
        except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            reason = (str(error) or type(error).__name__)[:200]
            raise BundleError(f"the codec tables can't be read: {reason}; copy them again or calibrate") from error


def _read_rung(arrays: Mapping[str, Any], index: int) -> RungTables:
    lanes, singles, pairs, quads = (int(number) for number in arrays[f"{index}.layout"])
    return RungTables(
        name=arrays[f"{index}.name"].tobytes().decode("ascii"),
        step=float(arrays[f"{index}.step"]),
        lanes=lanes,
        grouping=Grouping(singles, pairs, quads),
        key_scales=arrays[f"{index}.key_scales"],
        predicted_scales=arrays[f"{index}.predicted_scales"],
        gains=arrays[f"{index}.gains"],
        reference_offsets=arrays[f"{index}.reference_offsets"],
    )


def _check(tables: CodecTables) -> None:
    """Raises BundleError on tables that could make a coder fail, or take memory without end."""
    dim, columns = _float_shape("analysis", tables.analysis)
    rows, mean_dim = _float_shape("mean", tables.mean)
    if _float_shape("synthesis", tables.synthesis) != (dim, columns) or mean_dim != dim or columns > MAX_COLUMNS:
        raise BundleError(f"codec tables: basis {(dim, columns)} and mean {(rows, mean_dim)} do not fit each other")
    weights = tables.patch_weights
    if weights is not None and (
        weights.dtype != np.float32 or weights.shape != (rows,) or not ((weights > 1e-3) & (weights < 1e3)).all()
    ):
        raise BundleError(f"codec tables: the patches' weights are {weights.dtype} {weights.shape}, or out of range")
    counts = tables.counts
    if counts.dtype != np.uint32 or counts.shape != (CONTEXTS, max(ALPHABETS)):
        raise BundleError(f"codec tables: counts are {counts.dtype} {counts.shape}")
    for context, size in enumerate(ALPHABETS):
        if not counts[context, :size].all() or counts[context, size:].any() or counts[context].sum() != rans.TOTAL:
            raise BundleError(f"codec tables: context {context} is no distribution of {size} tokens")
    if not 1 <= len(tables.rungs) <= MAX_RUNGS:
        raise BundleError(f"codec tables: {len(tables.rungs)} rungs, expected 1..{MAX_RUNGS}")
    for rung in tables.rungs:
        _check_rung(rung, columns)


def _check_rung(rung: RungTables, columns: int) -> None:
    grouping = rung.grouping
    sizes = (grouping.singles, grouping.pairs, grouping.quads)
    expected = {
        "key_scales": (np.uint8, (grouping.groups,), 0, 255),
        "predicted_scales": (np.uint8, (grouping.groups,), 0, 255),
        "gains": (np.uint16, (grouping.columns,), 0, 1 << GAIN_BITS),
        "reference_offsets": (np.int8, (3, REFERENCE_LEVELS), -64, 64),
    }
    if min(sizes) < 0 or not 1 <= grouping.columns <= columns or not 1 <= rung.lanes <= MAX_LANES:
        raise BundleError(f"codec tables: rung {rung.name!r} has {sizes} groups and {rung.lanes} lanes")
    if not 1 / _LARGEST < rung.step < _LARGEST:
        raise BundleError(f"codec tables: rung {rung.name!r} has step {rung.step}")
    for name, (kind, shape, low, high) in expected.items():
        values = getattr(rung, name)
        if values.dtype != kind or values.shape != shape or (values < low).any() or (values > high).any():
            raise BundleError(f"codec tables: {name} of rung {rung.name!r} are {values.dtype} {values.shape}")


def _float_shape(name: str, values: Any) -> tuple[int, int]:
    if values.dtype != np.float32 or values.ndim != 2 or not values.size or not (np.abs(values) < _LARGEST).all():
        raise BundleError(f"codec tables: {name} is {values.dtype} {values.shape}, expected finite float32 of two axes")
    return int(values.shape[0]), int(values.shape[1])
