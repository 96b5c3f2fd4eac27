"""Whole numbers as one run of bits, most significant bit first, and back; all in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[Any]
Bits = npt.NDArray[np.uint8]  # one bit an element


def spread(values: Ints, widths: Ints) -> Bits:
    """The lowest `widths[i]` bits of every `values[i]`, one after the other; at most 31 of each."""
    each = widths.astype(np.int32)
    shifts = np.repeat(np.cumsum(each, dtype=np.int32), each)
    shifts -= np.arange(1, len(shifts) + 1, dtype=np.int32)
    bits = np.repeat(values.astype(np.int32), each)
    bits >>= shifts
    bits &= 1
    return bits.astype(np.uint8)


def gather(bits: Bits, widths: Ints) -> npt.NDArray[np.int64]:
    """The numbers that `spread` laid out. `bits` has at least as many as the widths need."""
    packed = np.concatenate((np.packbits(bits), np.zeros(8, np.uint8)))
    windows = np.ndarray(len(packed) - 7, ">u8", packed, strides=(1,))  # eight bytes from every byte on
    each = widths.astype(np.uint64)
    starts = np.cumsum(each, dtype=np.uint64) - each
    values = windows[(starts >> np.uint64(3)).astype(np.intp)].astype(np.uint64)
    values <<= starts & np.uint64(7)
    values >>= np.uint64(64) - each  # numpy makes zero of a shift by all 64 bits
    return values.astype(np.int64)


def spread_even(values: Ints, width: int) -> Bits:
    """`spread` of numbers that are all `width` bits wide, at most 16."""
    words = np.unpackbits(values.astype(">u2").view(np.uint8)).reshape(-1, 16)
    return words[:, 16 - width :].reshape(-1)


def gather_even(bits: Bits, width: int) -> npt.NDArray[np.int64]:
    """The numbers that `spread_even` laid out. `bits` has exactly as many as they need."""
    words = np.zeros((len(bits) // width, 16), np.uint8)
    words[:, 16 - width :] = bits.reshape(-1, width)
    return np.packbits(words).view(">u2").astype(np.int64)
