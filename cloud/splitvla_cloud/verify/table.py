"""What `verify` finds, as rows, and how rows are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitvla_shared.nouns import FloatArray

# Two ways of computing the same float32 graph: summation order moves the last bits, and blocks add up.
MIN_COSINE = 0.99999
MAX_ABS_OVER_RMS = 0.01


@dataclass(frozen=True, slots=True)
class Row:
    """One stage: what was compared, the worst that was found, what is asked for, and whether it is met."""

    stage: str
    compared: str
    worst: str
    floor: str
    passed: bool


def same_numbers(stage: str, compared: str, pairs: Sequence[tuple[FloatArray, FloatArray]]) -> Row:
    """Equal to the last bit."""
    worst = max(_max_abs(mine, theirs) for mine, theirs in pairs)
    return Row(stage, compared, f"max abs {worst:.3g}", "0", worst == 0)


def close_numbers(stage: str, compared: str, pairs: Sequence[tuple[FloatArray, FloatArray]]) -> Row:
    """Equal but for rounding. The cosine is that of the worst patch."""
    worst = max(_max_abs(mine, theirs) for mine, theirs in pairs)
    relative = max(_max_abs(mine, theirs) / max(_rms(mine), 1e-30) for mine, theirs in pairs)
    cosine = min(_worst_cosine(mine, theirs) for mine, theirs in pairs)
    return Row(
        stage,
        compared,
        f"max abs {worst:.2g} ({relative:.2g} rms), cosine {cosine:.7f}",
        f"<= {MAX_ABS_OVER_RMS:g} rms, >= {MIN_COSINE:g}",
        relative <= MAX_ABS_OVER_RMS and cosine >= MIN_COSINE,
    )


def render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns as wide as they need to be."""
    widths = [max(len(line[index]) for line in (header, *rows)) for index in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (header, *rows)]
    return "\n".join(line.rstrip() for line in (lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]))


def render_rows(rows: Sequence[Row]) -> str:
    return render(
        ("stage", "compared", "worst difference", "floor", ""),
        [(row.stage, row.compared, row.worst, row.floor, "PASS" if row.passed else "FAIL") for row in rows],
    )


def _max_abs(mine: FloatArray, theirs: FloatArray) -> float:
    """Infinite where the shapes differ or a number is none."""
    if mine.shape != theirs.shape:
        return float("inf")
    worst = float(np.max(np.abs(mine.astype(np.float64) - theirs), initial=0.0))
    return worst if np.isfinite(worst) else float("inf")


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _worst_cosine(mine: FloatArray, theirs: FloatArray) -> float:
    if mine.shape != theirs.shape:
        return -1.0
    a, b = mine.astype(np.float64), theirs.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    # A patch of zeros has no direction; max abs says whether the other is zero too.
    cosines = np.divide((a * b).sum(axis=-1), lengths, out=np.ones_like(lengths), where=lengths > 0)
    return float(min(1.0, cosines.min()))
