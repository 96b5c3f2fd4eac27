"""The curve: bytes a frame against the share of tokens that stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.codec.rows import BASES, Row

_COLOURS = dict(zip(BASES, ("#999999", "#56B4E9", "#0072B2"), strict=True))
_LINES = {"key": "-", "predicted": "--"}
# How each row begins, its colour and its line.
_STYLES = (
    *((f"{basis} {kind}", colour, line) for basis, colour in _COLOURS.items() for kind, line in _LINES.items()),
    ("JPEG", "#D55E00", "-"),
    ("WebP", "#E69F00", "-"),
    ("H.264", "#CC79A7", "--"),
    ("bf16", "#000000", "-"),
    ("int", "#009E73", "-"),
)


def draw(rows: Sequence[Row], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for prefix, colour, line in _STYLES:
        chosen = [row for row in rows if row.name.startswith(prefix)]
        if chosen:
            sizes = [float(np.median(row.sizes)) for row in chosen]
            axes.plot(
                sizes,
                [100 * row.agreement for row in chosen],
                marker="o",
                markersize=4,
                color=colour,
                linestyle=line,
                label=prefix,
            )
    axes.set(xscale="log", xlabel="bytes a frame (median)", ylabel="token agreement, %")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")
