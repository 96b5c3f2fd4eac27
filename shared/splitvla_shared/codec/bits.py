"""Numbers of different widths as one run of bits, most significant bit first, and back; all in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[Any]
Bits = npt.NDArray[np.uint8]  # one bit an element


def spread(values: Ints, widths: Ints) -> Bits:
    """The lowest `widths[i]` bits of every `values[i]`, one after the other."""
    each = np.repeat(widths, widths)
    place = np.arange(len(each)) - np.repeat(np.cumsum(widths) - widths, widths)
    bits: Bits = (np.repeat(values, widths) >> (each - 1 - place) & 1).astype(np.uint8)
    return bits


def gather(bits: Bits, widths: Ints) -> Ints:
    """The numbers that `spread` laid out, int64. `bits` has exactly as many as the widths need."""
    values = np.zeros(len(widths), np.int64)
    some = widths > 0
    if some.any():
        each = np.repeat(widths, widths)
        starts = np.cumsum(widths) - widths
        place = np.arange(len(each)) - np.repeat(starts, widths)
        values[some] = np.add.reduceat(bits.astype(np.int64) << (each - 1 - place), starts[some])
    return values
