"""Numbers of different widths as one run of bits, most significant bit first, and back; all in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[Any]
Bits = npt.NDArray[np.uint8]  # one bit an element


def spread(values: Ints, widths: Ints) -> Bits:
    """The lowest `widths[i]` bits of every `values[i]`, one after the other."""
    ends = np.cumsum(widths)
    shifts = np.repeat(ends, widths)
    shifts -= np.arange(1, len(shifts) + 1)
    bits: Bits = (np.repeat(values, widths) >> shifts & 1).astype(np.uint8)
    return bits


def gather(bits: Bits, widths: Ints) -> Ints:
    """The numbers that `spread` laid out, int64. `bits` has exactly as many as the widths need."""
    ends = np.cumsum(widths)
    values = np.zeros(len(widths), np.int64)
    (some,) = np.nonzero(widths)
    if len(some):
        # Bit `place` of all is bit `end - 1 - place` of its number.
        shifts = np.repeat(ends, widths) - 1 - np.arange(ends[-1])
        values[some] = np.add.reduceat(bits.astype(np.int64) << shifts, (ends - widths)[some])
    return values
