"""How often a task gets done: counts with their Wilson intervals, as a table, as a plot, and on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no screen is needed, and none is looked for

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.report import wilson
from splitvla_shared.errors import ConfigError

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Episodes of one task. steps: of those that succeeded, in the order of their seeds. lost: the world died.

    On the real clock: ticks and motions of all its episodes, and the oldest picture that an executed action came from.
    """

    task: str
    episodes: int
    successes: int
    steps: tuple[int, ...]
    lost: int = 0
    ticks: int = 0
    motions: int = 0
    oldest_s: float = 0.0

    @property
    def share(self) -> float:
        return self.successes / self.episodes if self.episodes else 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """One condition: what it was, the command that makes it again, and its tasks."""

    condition: str
    command: str
    tasks: tuple[TaskResult, ...]

    @property
    def mean(self) -> float:
        """Of the tasks' shares."""
        return sum(task.share for task in self.tasks) / len(self.tasks) if self.tasks else 0.0

    def rows(self) -> list[list[str]]:
        rows = [_row(task.task, task.successes, task.episodes, task.steps) for task in self.tasks]
        if len(self.tasks) > 1:
            successes, n = (sum(getattr(task, name) for task in self.tasks) for name in ("successes", "episodes"))
            steps = tuple(step for task in self.tasks for step in task.steps)
            rows.append(_row("**all**", successes, n, steps))
        return rows

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Result:
        """Raises ConfigError when the file is not one that `save` wrote."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            tasks = tuple(TaskResult(**{**task, "steps": tuple(task["steps"])}) for task in data["tasks"])
            return cls(data["condition"], data["command"], tasks)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} holds no result of benchmarks.success ({error!r})") from error


HEADER = ("task", "done", "success", "95 % interval", "steps p50")


def _row(name: str, successes: int, n: int, steps: Sequence[int]) -> list[str]:
    low, high = wilson(successes, n)
    median = f"{sorted(steps)[len(steps) // 2]}" if steps else "-"
    return [name, f"{successes}/{n}", f"{successes / n:.0%}" if n else "-", f"{low:.0%} to {high:.0%}", median]


def plot(results: Sequence[Result], path: Path, title: str) -> None:
    """Bars with intervals: tasks across, one colour a condition."""
    tasks = list(dict.fromkeys(task.task for result in results for task in result.tasks))
    width = 0.8 / max(1, len(results))
    figure, axis = plt.subplots(figsize=(max(6.0, 1.15 * len(tasks) + 1), 3.6), layout="constrained")
    for index, result in enumerate(results):
        _bars(axis, {task.task: task for task in result.tasks}, tasks, index, width, result)
    axis.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right")
    axis.set_ylim(0, 1.02)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axis.set_ylabel("episodes done")
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(
    axis: Axes, found: Mapping[str, TaskResult], tasks: Sequence[str], index: int, width: float, result: Result
) -> None:
    places = [at for at, task in enumerate(tasks) if task in found]
    shares = [found[tasks[at]].share for at in places]
    ends = [wilson(found[tasks[at]].successes, found[tasks[at]].episodes) for at in places]
    errors = [
        [max(0.0, share - low) for share, (low, _) in zip(shares, ends, strict=True)],
        [max(0.0, high - share) for share, (_, high) in zip(shares, ends, strict=True)],
    ]
    xs = [at - 0.4 + width * (index + 0.5) for at in places]
    label = f"{result.condition} (mean {result.mean:.0%})"
    axis.bar(xs, shares, width * 0.92, color=_COLOURS[index % len(_COLOURS)], label=label)
    axis.errorbar(xs, shares, yerr=errors, fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
