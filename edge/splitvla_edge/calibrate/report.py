"""What a calibration found, as a table for the terminal and as a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import Progress, TaskID, TimeElapsedColumn
from rich.table import Table

from splitvla_shared.errors import ConfigError
from splitvla_shared.rungs import RungCost

_HEADINGS = (
    "rung",
    "columns",
    "key B",
    "p95",
    "predicted B",
    "p95",
    "SQNR dB",
    "seen dB",
    "enc ms",
    "dec ms",
    "tokens",
)
_NARROWEST = 110


class StageBars:
    """A bar a stage with the time left, on a terminal; called as progress(stage, done, total) by one thread."""

    def __init__(self, stream: TextIO) -> None:
        self._progress = Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(file=stream))
        self._stages: dict[str, TaskID] = {}

    def __enter__(self) -> StageBars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._stages:
            self._stages[stage] = self._progress.add_task(stage)
        # A stage of one step shows that it is alive until it is done.
        known = total if total > 1 or done >= total else None
        self._progress.update(self._stages[stage], completed=done, total=known)


def print_costs(costs: Sequence[RungCost], stream: TextIO) -> None:
    """A row a rung; "seen" is the error as the backbone's first layer sees it, "tokens" the agreement with exact."""
    console = Console(file=stream)
    console.width = max(console.width, _NARROWEST)
    table = Table(*_HEADINGS)
    for column in table.columns[1:]:
        column.justify = "right"
    for cost in costs:
        table.add_row(cost.name, *map(_cell, _numbers(cost)), _share(cost.agreement))
    console.print(table)


def check_plot(path: Path | None) -> None:
    """Raises ConfigError when a plot is asked for and matplotlib is not installed, or its folder is not there."""
    if path is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib; the table is printed without it")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no such folder")


def draw(costs: Sequence[RungCost], path: Path, title: str) -> None:
    """Bytes against error, key and predicted frames of the codec beside the plain schemes. Raises ConfigError."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    codec = [cost for cost in costs if cost.predicted_bytes is not None]
    plain = [cost for cost in costs if cost.predicted_bytes is None]
    for label, rungs, mark in (("codec, key frames", codec, "o-"), ("plain schemes", plain, "s")):
        axes.plot([cost.key_bytes for cost in rungs], [cost.quality_db for cost in rungs], mark, label=label)
    predicted = [(cost.predicted_bytes or cost.key_bytes, cost.quality_db) for cost in codec]
    axes.plot([size for size, _ in predicted], [db for _, db in predicted], "o--", label="codec, predicted frames")
    for cost in costs:
        axes.annotate(
            cost.name, (cost.key_bytes, cost.quality_db), fontsize=7, xytext=(3, 3), textcoords="offset points"
        )
    seen = any(cost.seen_db is not None for cost in costs)
    axes.set(xscale="log", xlabel="bytes of a frame", ylabel="SQNR as the backbone sees it, dB" if seen else "SQNR, dB")
    axes.set_title(title, fontsize=9)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    try:
        figure.savefig(path, dpi=120, bbox_inches="tight", format="png")
    except OSError as error:
        raise ConfigError(f"--plot {path} can't be written: {error.strerror}") from error
    finally:
        plt.close(figure)


def _numbers(cost: RungCost) -> tuple[float | None, ...]:
    return (
        cost.columns,
        cost.key_bytes,
        cost.key_bytes_p95,
        cost.predicted_bytes,
        cost.predicted_bytes_p95,
        cost.sqnr_db,
        cost.seen_db,
        cost.encode_ms,
        cost.decode_ms,
    )


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def _share(agreement: float | None) -> str:
    return "" if agreement is None else f"{agreement:.1%}"
