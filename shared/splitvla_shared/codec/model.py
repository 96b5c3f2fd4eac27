"""What both machines expect of a frame's numbers: their prediction, and the context that each token is coded in.

Rules of this file: predictions and contexts are integers, made of integers; what only the robot decides (which number a
coefficient becomes, how loud a row is said to be) may use floats, because it is sent.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from splitvla_shared.codec.tables import (
    FIRST_CONTEXT,
    GAIN_BITS,
    JOINT_SCALES,
    REFERENCE_LEVELS,
    ROW_LEVELS,
    ROW_MIDDLE,
    SCALE_ZERO,
    SINGLE_SCALES,
    RungTables,
)
from splitvla_shared.codec.tokens import Int32
from splitvla_shared.nouns import FloatArray

# A number stays what was predicted, zero in a key frame, until the coefficient is this many steps away: a little error
# for many bytes. It bounds the error of every coefficient, in a chain of any length.
DEAD_ZONE = 0.6


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A frame's numbers, int32 (rows, columns), as both machines know them; `sequence` names it in its session."""

    sequence: int
    rung: int
    numbers: Int32
    checksum: int

    @classmethod
    def of(cls, sequence: int, rung: int, numbers: Int32) -> Reference:
        return cls(sequence, rung, numbers, zlib.crc32(np.ascontiguousarray(numbers, "<i4").data))


@dataclass(frozen=True, slots=True, eq=False)
class RungModel:
    """A rung with what is derived from it once."""

    rung: RungTables
    columns: int
    gains: Int32
    places: npt.NDArray[np.uint8]  # where a group's kind begins among the rung's reference offsets
    caps: npt.NDArray[np.int16]
    starts: npt.NDArray[np.int16]
    key_contexts: npt.NDArray[np.int16]  # (levels, groups)
    predicted_scales: npt.NDArray[np.int16]  # (levels, groups), as far as they do not depend on the reference
    weights: tuple[FloatArray, FloatArray]  # of key and of predicted frames, (columns,)
    expected: tuple[float, float]

    @classmethod
    def of(cls, rung: RungTables) -> RungModel:
        grouping, kinds = rung.grouping, rung.kinds
        widths = np.repeat((1, 2, 4), (grouping.singles, grouping.pairs, grouping.quads))
        magnitudes = [
            np.repeat(expected_magnitude(scales), widths) for scales in (rung.key_scales, rung.predicted_scales)
        ]
        weights = tuple((1 / (each + 0.3)).astype(np.float32) for each in magnitudes)
        expected = tuple(float(weight @ each) for weight, each in zip(weights, magnitudes, strict=True))
        caps = np.array((SINGLE_SCALES, JOINT_SCALES, JOINT_SCALES), np.int16)[kinds] - np.int16(1)
        starts = FIRST_CONTEXT + np.array((0, SINGLE_SCALES, SINGLE_SCALES + JOINT_SCALES), np.int16)[kinds]
        louder = np.arange(ROW_LEVELS, dtype=np.int16)[:, None] - np.int16(ROW_MIDDLE)
        return cls(
            rung,
            grouping.columns,
            rung.gains.astype(np.int32),
            (kinds * REFERENCE_LEVELS).astype(np.uint8),
            caps,
            starts,
            np.clip(rung.key_scales + louder, 0, caps) + starts,
            rung.predicted_scales + louder,
            (weights[0], weights[1]),
            (expected[0], expected[1]),
        )

    def levels(self, sizes: Int32, *, predicted: bool) -> npt.NDArray[np.uint8]:
        """How loud each row is beside what its columns lead to expect: 0..8, uint8 (rows,). The sender's choice.

        sizes: magnitudes of what is sent, (rows, columns).
        """
        found = sizes.astype(np.float32) @ self.weights[predicted]
        ratio = (found + 0.5) / (self.expected[predicted] + 0.5)
        levels = np.clip(np.rint(2 * np.log2(ratio)) + ROW_MIDDLE, 0, ROW_LEVELS - 1)
        return np.asarray(levels, np.uint8)

    def contexts(self, levels: Any, reference: Reference | None) -> npt.NDArray[np.int16]:
        """The context of each token, int16 (rows, groups)."""
        if reference is None:
            return np.asarray(self.key_contexts.take(levels, axis=0))
        scales = np.asarray(self.predicted_scales.take(levels, axis=0))
        scales += self.reference_offsets(reference.numbers)
        np.clip(scales, 0, self.caps, out=scales)
        scales += self.starts
        return scales

    def reference_offsets(self, numbers: Int32) -> npt.NDArray[np.int16]:
        """int16 (rows, groups): what the magnitude of the reference adds to a token's scale."""
        seen = self.rung.grouping.largest(np.minimum(np.abs(numbers), REFERENCE_LEVELS - 1).astype(np.uint8))
        flat = self.rung.reference_offsets.astype(np.int16).reshape(-1)
        return np.asarray(flat.take(seen + self.places))


def expected_magnitude(scales: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """What a scale says of a number's magnitude, in steps."""
    expected: npt.NDArray[np.float64] = 2.0 ** ((scales.astype(np.float64) - SCALE_ZERO) / 2)
    return expected


def departure(scaled: FloatArray, nearest: Int32, prediction: Int32 | None = None) -> Int32:
    """From the prediction, zero where it is None, to the nearest whole number; zero where it is near enough.

    scaled: coefficients in steps. nearest: these rounded.
    """
    away = scaled if prediction is None else scaled - prediction.astype(np.float32)
    far = (np.abs(away) >= np.float32(DEAD_ZONE)).view(np.int8).astype(np.int32)
    far *= nearest if prediction is None else nearest - prediction
    return far


def predicted_numbers(numbers: Int32, gains: Int32) -> Int32:
    """numbers * gain / 2^8, rounded to nearest, halves away from zero: whole numbers throughout."""
    products = numbers * gains
    products += products >> 31  # one less below zero, where a half is rounded down
    products += 1 << GAIN_BITS - 1
    products >>= GAIN_BITS
    return products
