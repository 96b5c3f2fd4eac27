"""Integer layouts INT8 and INT4: all scales first, then the symmetric codes in row order.

Rules of this file:
 - A code times its scale is the element; |element - original| <= scale / 2 for every finite input, subnormals included.
 - Codes are symmetric: -127..127 and -7..7. -128 and -8 are never written and are refused when read.
 - Scales are finite, not negative, and small enough that no product overflows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from splitvla_shared.codec.floats import check_finite_input
from splitvla_shared.codec.layout import Layout, Part
from splitvla_shared.errors import CodecError
from splitvla_shared.nouns import FloatArray

GROUP = 64  # elements of a row that share an INT4 scale; the last group of a row may be shorter

_INT8_MAX, _INT4_MAX = 127, 7
_F32_MAX = float(np.finfo(np.float32).max)


def _magnitude_bits(patches: FloatArray) -> npt.NDArray[np.uint32]:
    """|element| as integers: they order as the floats do, with infinity and NaN on top, so one reduction finds all."""
    bits: npt.NDArray[np.uint32] = patches.view("<u4") & np.uint32(0x7FFFFFFF)
    return bits


def _scales(largest: FloatArray, top: int, dtype: str) -> npt.NDArray[Any]:
    """`largest / top` in `dtype`, rounded so that the largest element still rounds to a code of at most `top`."""
    wanted = largest.astype(np.float64) / top
    with np.errstate(over="ignore"):  # the caller looks for infinities
        scales = wanted.astype(dtype)
        # Nearest is good enough except among subnormals, where one step is a large part of the scale.
        too_small = scales.astype(np.float64) * (top + 0.25) < largest
        scales[too_small] = np.nextafter(scales[too_small], scales.dtype.type(np.inf))
    return scales


def _divisors(scales: npt.NDArray[Any]) -> FloatArray:
    return np.where(scales > 0, scales, 1).astype(np.float32)


def _pack_int8(patches: FloatArray) -> tuple[Part, ...]:
    largest = _magnitude_bits(patches).max(axis=1).view("<f4")
    if not np.isfinite(largest).all():
        check_finite_input(patches)
    scales = _scales(largest, _INT8_MAX, "<f4")
    if not _products_finite(scales):
        raise CodecError(f"the embedding reaches {largest.max():.6g}, too large for an int8 scale; send f32 instead")
    steps = patches / _divisors(scales)[:, None]
    np.rint(steps, out=steps)
    return scales, steps.astype(np.int8)


def _products_finite(scales: npt.NDArray[Any]) -> bool:
    return float(scales.max()) * _INT8_MAX <= _F32_MAX


def _unpack_int8(body: memoryview, rows: int, dim: int) -> FloatArray:
    scales = np.frombuffer(body, dtype="<f4", count=rows)
    _check_scales(scales.view("<u4"), 0x7F800000)
    if not _products_finite(scales):
        raise CodecError(f"the payload's int8 scale {scales.max():.6g} overflows float32; the sender is broken")
    codes = np.frombuffer(body, dtype=np.int8, offset=rows * 4).reshape(rows, dim)
    if int(codes.min()) == -128:
        raise CodecError("the payload holds the int8 code -128, which no encoder writes; the sender is broken")
    patches: FloatArray = np.multiply(codes, scales[:, None], dtype=np.float32)
    return patches


def _check_scales(bits: npt.NDArray[Any], infinity: int) -> None:
    # As unsigned integers NaN, infinity and every negative number (-0 too) lie above the finite positive ones.
    if int(bits.max()) >= infinity:
        raise CodecError("the payload holds a scale that is negative or not finite; the sender is broken")


def _groups(dim: int) -> int:
    return -(-dim // GROUP)


def _group_magnitudes(patches: FloatArray) -> FloatArray:
    """(rows, groups): the largest |element| of each group."""
    rows, dim = patches.shape
    whole = dim // GROUP * GROUP
    bits = _magnitude_bits(patches)
    largest = np.empty((rows, _groups(dim)), dtype="<u4")
    bits[:, :whole].reshape(rows, whole // GROUP, GROUP).max(axis=2, out=largest[:, : whole // GROUP])
    if whole < dim:
        bits[:, whole:].max(axis=1, out=largest[:, -1])
    return largest.view("<f4")


def _pack_int4(patches: FloatArray) -> tuple[Part, ...]:
    rows, dim = patches.shape
    largest = _group_magnitudes(patches)
    if not np.isfinite(largest).all():
        check_finite_input(patches)
    scales = _scales(largest, _INT4_MAX, "<f2")
    if not np.isfinite(scales).all():
        raise CodecError(f"the embedding reaches {largest.max():.6g}, beyond int4's {7 * 65504}; send int8 instead")
    steps = np.empty((rows, dim + dim % 2), dtype=np.float32)
    steps[:, dim:] = 0  # the spare column of an odd dim: its code is the padding nibble
    _by_group(np.divide, patches, _divisors(scales), steps[:, :dim])
    np.rint(steps, out=steps)
    pairs = steps.astype(np.int8).view("<u2")
    low, high = pairs & np.uint16(0x000F), pairs >> np.uint16(4)
    high &= np.uint16(0x00F0)
    low |= high
    return scales, low.astype(np.uint8)


def _by_group(operation: np.ufunc, values: FloatArray, scales: FloatArray, out: FloatArray) -> None:
    """out = operation(values, the scale of each element's group). Splitting the last axis makes views, no copies."""
    rows, dim = values.shape
    whole = dim // GROUP * GROUP
    grouped = (rows, whole // GROUP, GROUP)
    if whole:
        per_group = scales[:, : whole // GROUP, None]
        operation(values[:, :whole].reshape(grouped), per_group, out=out[:, :whole].reshape(grouped))
    if whole < dim:
        operation(values[:, whole:], scales[:, -1:], out=out[:, whole:])


def _nibble_pairs() -> npt.NDArray[np.uint64]:
    """For each byte the two float32 elements it stands for, as one 8-byte word: one table look-up a byte."""
    byte = np.arange(256)
    nibbles = np.stack((byte & 15, byte >> 4), axis=1)
    values = np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.float32)
    pairs: npt.NDArray[np.uint64] = values.view(np.uint64)[:, 0]
    pairs.setflags(write=False)
    return pairs


_NIBBLE_PAIRS = _nibble_pairs()


def _unpack_int4(body: memoryview, rows: int, dim: int) -> FloatArray:
    groups = _groups(dim)
    scales = np.frombuffer(body, dtype="<f2", count=rows * groups).reshape(rows, groups)
    _check_scales(scales.view("<u2"), 0x7C00)
    packed = np.frombuffer(body, dtype=np.uint8, offset=rows * groups * 2).reshape(rows, -1)
    if ((packed & 0x0F) == 0x08).any() or ((packed & 0xF0) == 0x80).any():
        raise CodecError("the payload holds the int4 code -8, which no encoder writes; the sender is broken")
    if dim % 2 and (packed[:, -1] & 0xF0).any():
        raise CodecError("the payload's int4 padding is not zero; the sender is broken")
    values: FloatArray = np.take(_NIBBLE_PAIRS, packed).view(np.float32)[:, :dim]
    _by_group(np.multiply, values, scales.astype(np.float32), values)
    return np.ascontiguousarray(values)


INT8 = Layout(lambda rows, dim: rows * 4 + rows * dim, _pack_int8, _unpack_int8)
INT4 = Layout(lambda rows, dim: rows * _groups(dim) * 2 + rows * -(-dim // 2), _pack_int4, _unpack_int4)
