"""Float layouts F32, F16 and BF16: the elements in row order, little-endian, nothing else.

Non-finite elements are found through the largest magnitude bits (the sign masked off), which is one integer pass and
several times faster than `isfinite` on half precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from splitvla_shared.codec.layout import Layout, Part
from splitvla_shared.errors import CodecError
from splitvla_shared.nouns import FloatArray

_F32_INF, _F16_INF, _BF16_INF = 0x7F800000, 0x7C00, 0x7F80


def check_finite_input(patches: FloatArray) -> None:
    """Raises CodecError with the place of the first element that is no finite number."""
    if _all_finite(patches.view("<u4"), 0x7FFFFFFF, _F32_INF):
        return
    row, column = (int(i) for i in np.argwhere(~np.isfinite(patches))[0])
    raise CodecError(f"the embedding is {patches[row, column]} at row {row}, column {column}; check the encoder")


def _all_finite(bits: npt.NDArray[Any], magnitude_mask: int, infinity: int) -> bool:
    return int((bits & bits.dtype.type(magnitude_mask)).max()) < infinity


def _check_half_range(patches: FloatArray, bits: npt.NDArray[Any], infinity: int, name: str) -> None:
    if _all_finite(bits, 0x7FFF, infinity):
        return
    largest = max(float(patches.max()), -float(patches.min()))
    remedy = "send bf16 instead" if infinity == _F16_INF else "send f32 instead"
    raise CodecError(f"the embedding reaches {largest:.6g}, beyond {name}; {remedy}")


def _refuse_non_finite(bits: npt.NDArray[Any], magnitude_mask: int, infinity: int) -> None:
    if not _all_finite(bits, magnitude_mask, infinity):
        raise CodecError("the payload holds NaN or infinity; the sender's encoder is broken")


def _pack_f32(patches: FloatArray) -> tuple[Part, ...]:
    check_finite_input(patches)
    return (patches,)


def _unpack_f32(body: memoryview, rows: int, dim: int) -> FloatArray:
    bits = np.frombuffer(body, dtype="<u4")
    _refuse_non_finite(bits, 0x7FFFFFFF, _F32_INF)
    return bits.view("<f4").reshape(rows, dim).astype(np.float32)


def _pack_f16(patches: FloatArray) -> tuple[Part, ...]:
    check_finite_input(patches)
    with np.errstate(over="ignore"):  # the check below reports it with the value
        halves = patches.astype("<f2")
    _check_half_range(patches, halves.view("<u2"), _F16_INF, "float16's 65504")
    return (halves,)


def _unpack_f16(body: memoryview, rows: int, dim: int) -> FloatArray:
    bits = np.frombuffer(body, dtype="<u2")
    _refuse_non_finite(bits, 0x7FFF, _F16_INF)
    return bits.view("<f2").reshape(rows, dim).astype(np.float32)


def _pack_bf16(patches: FloatArray) -> tuple[Part, ...]:
    # Before rounding: the carry would turn some NaNs into finite numbers.
    check_finite_input(patches)
    bits = patches.view("<u4")
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)  # ties go to the even neighbour
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    halves = rounded.astype("<u2")
    _check_half_range(patches, halves, _BF16_INF, "bfloat16's 3.38953e+38")
    return (halves,)


def _unpack_bf16(body: memoryview, rows: int, dim: int) -> FloatArray:
    bits = np.frombuffer(body, dtype="<u2")
    _refuse_non_finite(bits, 0x7FFF, _BF16_INF)
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32).reshape(rows, dim)


F32 = Layout(lambda rows, dim: rows * dim * 4, _pack_f32, _unpack_f32)
F16 = Layout(lambda rows, dim: rows * dim * 2, _pack_f16, _unpack_f16)
BF16 = Layout(lambda rows, dim: rows * dim * 2, _pack_bf16, _unpack_bf16)
