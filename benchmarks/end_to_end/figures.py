"""The pictures: where each way's time goes, which way wins on which link, and what many robots do to one server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no screen is needed, and none is looked for

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from benchmarks.end_to_end.alternatives import Measured
from benchmarks.end_to_end.fleet import Fleet
from benchmarks.end_to_end.regions import FAMILIES, NO_PICTURES, RATES, RTTS, SENT, Cost, Regions, regions
from benchmarks.end_to_end.results import Summary
from benchmarks.end_to_end.soak import minutes, slopes
from benchmarks.end_to_end.ways import Answered, Family

# Okabe and Ito's colours, which colour-blind people can tell apart.
_FAMILY_COLOURS: Mapping[Family, str] = {
    Family.JPEG: "#E69F00",
    Family.RAW: "#F0E442",
    Family.SPLIT: "#0072B2",
    Family.LOSSY: "#56B4E9",
    Family.LOCAL: "#999999",
}
_PARTS: tuple[tuple[str, str, Callable[[Answered], float]], ...] = (
    ("robot computes", "#0072B2", lambda answer: answer.robot_ms),
    ("wire and protocol", "#E69F00", lambda answer: answer.wire_ms),
    ("server computes", "#009E73", lambda answer: answer.server_ms),
)
_LEVELS_MS = (20, 50, 100, 200, 300, 400, 600, 1000, 2000, 4000)
_MOST_RUNGS = 3  # named in a region
_LAST_LABEL_MBPS = 400.0  # a name further right would leave the map
_LEAST_AREA = 0.004  # of a map: a smaller region gets no name


def draw_alternatives(measured: Sequence[Measured], path: Path, model: str) -> None:
    """A bar a way: medians of its three parts, with the whole's p50 and p99 written beside it."""
    _style()
    figure, axis = plt.subplots(figsize=(10, 0.45 * len(measured) + 1.6), layout="constrained")
    names = [way.name for way in measured]
    left = np.zeros(len(measured))
    for label, colour, part in _PARTS:
        widths = np.array([way.median(part) for way in measured])
        axis.barh(names, widths, left=left, color=colour, label=label, height=0.7)
        left += widths
    for index, way in enumerate(measured):
        size = f", {_kilobytes(way.up_bytes)}" if way.up_bytes else ""
        text = f"  {way.total.p50:.0f} ms (p99 {way.total.p99:.0f}){size}"
        axis.text(left[index], index, text, va="center", fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, float(left.max()) * 1.4)
    axis.set_xlabel("milliseconds from frame to action, median")
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, 1.0 + 0.9 / len(measured)), ncols=3, frameon=False)
    figure.suptitle(f"The same frame, every way to an action ({model})", x=0.01, ha="left", fontweight="bold")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _kilobytes(size: int) -> str:
    return f"{size / 1000:,.0f} kB" if size >= 10_000 else f"{size / 1000:.1f} kB"


def draw_regions(panels: Mapping[str, Sequence[Cost]], path: Path) -> None:
    """A row a set of costs: the fastest way on each link for a model that the robot can't hold, and again where no
    picture may leave the robot. What holding it would give needs no map: it is in the row's title."""
    _style()
    figure, axes = plt.subplots(
        len(panels), 2, figsize=(11, 4.1 * len(panels)), squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for row, (title, costs) in zip(axes, panels.items(), strict=True):
        for axis, allowed, what in (
            (row[0], SENT, "fastest way"),
            (row[1], NO_PICTURES, "fastest where pictures stay on the robot"),
        ):
            _draw_map(axis, regions(costs, allowed))
            axis.set_title(f"{title}:\n{what}{_whole(costs)}", fontsize=10)
        row[0].set_ylabel("round trip, ms")
    for axis in axes[-1]:
        axis.set_xlabel("uplink, Mbit/s")
    title = "The model does not fit the robot: which way to an action is the fastest? Lines: its latency in ms"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _whole(costs: Sequence[Cost]) -> str:
    """The model whole on the robot, where that was measured."""
    times = [cost.fixed_ms for cost in costs if cost.family is Family.LOCAL]
    return f" (whole on the robot: {min(times):.0f} ms)" if times else ""


def _draw_map(axis: Any, found: Regions) -> None:
    colours = ListedColormap([_FAMILY_COLOURS[family] for family in FAMILIES])
    axis.pcolormesh(RATES, RTTS, found.winner, cmap=colours, vmin=-0.5, vmax=len(FAMILIES) - 0.5, alpha=0.75)
    if float(np.ptp(found.latency_ms)) > 1.0:
        lines = axis.contour(RATES, RTTS, found.latency_ms, levels=_LEVELS_MS, colors="black", linewidths=0.6)
        axis.clabel(lines, fmt="%d", fontsize=7)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks((1, 10, 100, 1000), labels=("1", "10", "100", "1000"))
    axis.set_yticks((1, 10, 30, 100), labels=("1", "10", "30", "100"))
    axis.minorticks_off()
    for index, family in enumerate(FAMILIES):
        inside = np.argwhere(found.winner == index)
        if len(inside) >= _LEAST_AREA * found.winner.size:
            y, x = inside[np.argmin(np.abs(inside - inside.mean(axis=0)).sum(axis=1))]
            text = family.value if family is not Family.LOSSY else f"{family.value}:\n{_rungs(found, index)}"
            axis.text(
                min(RATES[x], _LAST_LABEL_MBPS), RTTS[y], text, ha="center", va="center", fontsize=9, fontweight="bold"
            )


def _rungs(found: Regions, family: int) -> str:
    """Those that win most of a family's region."""
    numbers, sizes = np.unique(found.way[found.winner == family], return_counts=True)
    most = numbers[np.argsort(-sizes)][:_MOST_RUNGS]
    return ", ".join(found.names[number].removeprefix("split, ") for number in most)


def draw_scale(fleets: Sequence[Fleet], hz: float, path: Path, model: str) -> None:
    """Latency and actions a second against the number of robots."""
    _style()
    figure, (times, rates) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    counts = [len(fleet.robots) for fleet in fleets]
    summaries = [Summary.of(fleet.latencies_ms or [np.nan]) for fleet in fleets]
    for name, colour, style in (("p50", "#0072B2", "o-"), ("p99", "#D55E00", "s--")):
        times.plot(counts, [getattr(summary, name) for summary in summaries], style, color=colour, label=name)
    times.legend(frameon=False)
    times.set_ylabel("ms a call")
    times.set_ylim(bottom=0)
    rates.plot(counts, [hz * count for count in counts], ":", color="black", label="asked")
    rates.plot(counts, [fleet.actions_per_s for fleet in fleets], "o-", color="#009E73", label="answered")
    rates.legend(frameon=False)
    rates.set_ylabel("actions a second")
    for axis in (times, rates):
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, labels=[str(count) for count in counts])
        axis.set_xlabel("robots")
    figure.suptitle(f"Robots at {hz:g} Hz on one server ({model})", x=0.01, ha="left", fontweight="bold")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_soak(fleet: Fleet, path: Path) -> None:
    """Latency minute by minute, and memory of the server and of one robot over the time, with its slope."""
    _style()
    figure, axes = plt.subplots(3, 1, figsize=(10, 6.0), sharex=True, layout="constrained")
    answered = [minute for minute in minutes(fleet) if minute.latency is not None]
    middles = [minute.number - 0.5 for minute in answered]
    for name, colour, style in (("p50", "#0072B2", "o-"), ("p99", "#D55E00", "s--")):
        axes[0].plot(middles, [getattr(each.latency, name) for each in answered], style, color=colour, label=name)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("ms a call")
    axes[0].legend(frameon=False, ncols=2)
    server, robot = slopes(fleet)
    seen = [row[0] / 60 for row in fleet.memory]
    sides = ((axes[1], 1, "server", "#0072B2", server), (axes[2], 2, "one robot", "#009E73", robot))
    for axis, side, name, colour, slope in sides:
        axis.set_ylabel(f"{name}, MiB")
        if slope is None:
            axis.text(0.5, 0.5, "on another machine", transform=axis.transAxes, ha="center")
            continue
        axis.plot(seen, [row[side] / (1 << 20) for row in fleet.memory], color=colour)
        axis.set_title(f"{slope} MiB an hour", loc="right", fontsize=9)
    axes[-1].set_xlabel("minutes")
    answers = f"{len(fleet.latencies_ms):,} answers, misses: {fleet.missed}"
    figure.suptitle(f"{len(fleet.robots)} robots on one server: {answers}", x=0.01, ha="left", fontweight="bold")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _style() -> None:
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
