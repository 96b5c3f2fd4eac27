"""The shares of trace_shares.py as one picture: a bar for each link and client, its parts the sources of the ticks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import matplotlib as mpl

mpl.use("Agg")  # no screen is needed, and none is looked for

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

# A colour-blind-safe palette; what is dangerous is red.
_COLOURS = {
    "fresh": "#009E73", "coast": "#56B4E9", "wait": "#F0E442", "hold": "#E69F00", "local": "#0072B2",
    "stale": "#D55E00", "without": "#7A1F00",
}  # fmt: skip
_LABELS = {
    "fresh": "action of a fresh answer", "coast": "rest of the last chunk", "wait": "holding: the answer is due",
    "hold": "holding", "local": "local policy", "stale": "action older than allowed",
    "without": "nothing, or the last action again",
}  # fmt: skip


class Ticks(Protocol):
    @property
    def shares(self) -> dict[str, float]: ...


class Row(Protocol):
    @property
    def road(self) -> str: ...

    @property
    def robot(self) -> str: ...

    @property
    def client(self) -> str: ...

    @property
    def ticks(self) -> Ticks: ...


def draw(rows: Sequence[Row], sources: Sequence[str], path: Path, *, title: str) -> None:
    """Write the picture: one column of bars a robot."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    robots = list(dict.fromkeys(row.robot for row in rows))
    height = 1.6 + 0.21 * len(rows) / len(robots)
    figure, axes = plt.subplots(1, len(robots), figsize=(14, height), sharey=True, layout="constrained", squeeze=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    for axis, robot in zip(axes[0], robots, strict=True):
        mine = [row for row in rows if row.robot == robot]
        names, places, place = [], [], 0.0
        for index, row in enumerate(mine):
            place += 1.0 if index == 0 or mine[index - 1].road == row.road else 1.8
            names.append(f"{row.road}: {row.client}" if row.client == "ours" else row.client)
            places.append(place)
            _bar(axis, place, row, sources)
        axis.set_yticks(places, names)
        axis.set_title(robot, loc="left")
        axis.set_xlim(0, 100)
        axis.set_xlabel("% of ticks")
    axes[0][0].invert_yaxis()
    shown = [source for source in sources if any(row.ticks.shares.get(source) for row in rows)]
    handles = [Patch(color=_COLOURS[source], label=_LABELS[source]) for source in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(shown), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bar(axis: Axes, place: float, row: Row, sources: Sequence[str]) -> None:
    left = 0.0
    for source in sources:
        share = 100 * row.ticks.shares.get(source, 0.0)
        axis.barh(place, share, left=left, color=_COLOURS[source], height=0.85)
        left += share
