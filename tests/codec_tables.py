"""Codec tables made of whole numbers and formulas, so that golden bytes rest on nothing that was learned."""

from __future__ import annotations

import numpy as np

from splitvla_shared.codec import rans
from splitvla_shared.codec.tables import ALPHABETS, CONTEXTS, CodecTables, RungTables
from splitvla_shared.codec.tokens import Grouping
from splitvla_shared.nouns import FloatArray

ROWS, COLUMNS = 16, 12
GROUPING = Grouping(singles=4, pairs=2, quads=1)


def formula_counts() -> np.ndarray[tuple[int, ...], np.dtype[np.uint32]]:
    """Falling counts, the steeper the smaller the context's number; each row sums to 2^12 with none at zero."""
    counts = np.zeros((CONTEXTS, max(ALPHABETS)), np.uint32)
    for context, size in enumerate(ALPHABETS):
        weights = np.array([4096 // (1 + token * token * (1 + context % 5)) + 1 for token in range(size)])
        counts[context, :size] = 1 + weights * (rans.TOTAL - size) // weights.sum()
        counts[context, 0] += rans.TOTAL - counts[context].sum()
    return counts


def formula_tables(steps: tuple[float, ...] = (0.25, 1.0), lanes: int = 8) -> CodecTables:
    """The identity as basis, a mean of zero, one rung a step; sealed, so that they carry their file's hash."""
    identity = np.eye(COLUMNS, dtype=np.float32)
    rungs = tuple(
        RungTables(
            name=f"step{step:g}",
            step=step,
            lanes=lanes,
            grouping=GROUPING,
            key_scales=np.arange(20, 20 - GROUPING.groups, -1, dtype=np.uint8),
            predicted_scales=np.arange(16, 16 - GROUPING.groups, -1, dtype=np.uint8),
            gains=np.array([256, 240, 192, 128] * 3, np.uint16),
            reference_offsets=np.array([[-1, 0, 1, 2]] * 3, np.int8),
        )
        for step in steps
    )
    tables = CodecTables(np.zeros((ROWS, COLUMNS), np.float32), identity, identity, formula_counts(), rungs)
    return CodecTables.from_bytes(tables.to_bytes())


def formula_coefficients(frame: int = 0) -> FloatArray:
    """float32 (ROWS, COLUMNS): eighths, one channel a thousand times larger, sparse at the end; moves with `frame`."""
    row, column = np.indices((ROWS, COLUMNS))
    eighths = (row * 31 + column * 7 + frame * (row % 3)) % 41 - 20
    sizes = np.where(column == 0, 1000, np.where(column > 7, 1 / 16, 1))
    return np.asarray(eighths / 8 * sizes, np.float32)
