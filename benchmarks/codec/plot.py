"""The curve: bytes a frame against the share of tokens that stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.codec.rows import BASES, Row

_RUNGS = tuple(f"{basis} {kind}" for basis in BASES for kind in ("key", "predicted"))
_LABELS = (*_RUNGS, "JPEG", "WebP", "H.264", "bf16", "int")


def draw(rows: Sequence[Row], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for prefix in _LABELS:
        chosen = [row for row in rows if row.name.startswith(prefix)]
        if chosen:
            sizes = [float(np.median(row.sizes)) for row in chosen]
            axes.plot(sizes, [100 * row.agreement for row in chosen], "o-", label=prefix)
    axes.set(xscale="log", xlabel="bytes a frame (median)", ylabel="token agreement, %")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
