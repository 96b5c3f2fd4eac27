"""The live view of a run: follows its step log from another process, so that drawing never costs the robot a tick."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from splitvla_edge.daemon.record import RUN_FILE, STEPS_FILE, StepRecord, StepTail, run_has_ended
from splitvla_shared.nouns import StageTimes

_COLOURS = {
    "INIT": "blue",
    "NOMINAL": "green",
    "DEGRADED": "bright_yellow",
    "COAST": "bright_cyan",
    "WAIT": "cyan",
    "HOLD": "yellow",
    "LOCAL": "magenta",
    "SAFE_STOP": "red",
}
_BAND = 60
_RATE_WINDOW_S = 5.0
_WAIT_S = 0.1
_STAGES = tuple(each.name for each in dataclasses.fields(StageTimes))


@dataclass(slots=True)
class View:
    """What the screen shows. Owned by `watch`; mutable state: the last ticks, the last answer, and counts."""

    band: deque[StepRecord] = field(default_factory=lambda: deque(maxlen=_BAND))
    actions: deque[float] = field(default_factory=lambda: deque(maxlen=4096))
    misses: Counter[str] = field(default_factory=Counter)
    stages: StageTimes | None = None
    wire_bytes: int = 0
    detail: str = ""

    def add(self, record: StepRecord) -> None:
        self.band.append(record)
        if record.sequence is not None:
            self.actions.append(record.t)
        if record.miss:
            self.misses[record.miss] += 1
        if record.stages is not None:
            self.stages, self.wire_bytes = record.stages, record.wire_bytes or 0
        self.detail = record.detail

    def rate_hz(self) -> float:
        """Actions a second over the last five seconds of the run."""
        if not self.band:
            return 0.0
        since = self.band[-1].t - _RATE_WINDOW_S
        return sum(t > since for t in self.actions) / min(_RATE_WINDOW_S, max(self.band[-1].t, 1.0))

    def line(self) -> str:
        """The screen in one line, where there is no terminal."""
        if not self.band:
            return "waiting for the first tick"
        last = self.band[-1]
        total = f"{self.stages.total_ms:.0f} ms, {self.wire_bytes:,} B" if self.stages else "no answer yet"
        misses = sum(self.misses.values())
        return (
            f"{last.t:7.1f} s  {last.state:<9} {last.cause}; {self.rate_hz():.1f} actions/s; {_age(last)}; "
            f"{total}; {misses} misses{'' if last.perception_up else '; perception down'}"
        )

    def screen(self) -> Panel:
        """The whole screen; a pure function of the fields."""
        if not self.band:
            return Panel("waiting for the first tick", title="splitvla")
        last = self.band[-1]
        band = Text("".join("█" for _ in self.band))
        for column, record in enumerate(self.band):
            band.stylize(_COLOURS.get(record.state, "white"), column, column + 1)
        facts = Table.grid(padding=(0, 2))
        for name, value in (
            ("state", Text(f"{last.state}: {last.cause}", style=_COLOURS.get(last.state, "white"))),
            ("actions", Text(f"{self.rate_hz():.1f} /s, {_age(last)}")),
            ("horizon", Text(f"{last.horizon_ms:.0f} ms of actions left")),
            ("sent", Text(f"{self.wire_bytes:,} B a frame, payload rung {last.rung}")),
            ("misses", Text(", ".join(f"{n} {name}" for name, n in self.misses.most_common()) or "none")),
            ("command", Text(" ".join(f"{value:+.4f}" for value in last.command))),
            ("perception", Text("up" if last.perception_up else "down")),
            ("detail", Text(self.detail or "-")),
        ):
            facts.add_row(name, value)
        title = f"splitvla, tick {last.tick}, {last.t:.1f} s"
        return Panel(Group(band, facts, _stage_table(self.stages)), title=title)


def _age(record: StepRecord) -> str:
    return "no action" if record.age_ms is None else f"age {record.age_ms:.0f} ms"


def _stage_table(stages: StageTimes | None) -> Table:
    table = Table.grid(padding=(0, 2))
    if stages is None:
        table.add_row("no answer yet")
        return table
    longest = max(stages.total_ms, 1e-9)
    for name in _STAGES:
        value = getattr(stages, name)
        bar = "━" * max(0, min(40, round(40 * value / longest)))
        table.add_row(name.removesuffix("_ms").replace("_", " "), f"{value:8.1f} ms", Text(bar, style="magenta"))
    return table


def wait_for_run(run_dir: Path, timeout_s: float = 10.0, sleep: Callable[[float], None] = time.sleep) -> None:
    """Until a run has begun in `run_dir`, or `timeout_s` is over; `watch` then says what is missing."""
    waited_s = 0.0
    while not (run_dir / RUN_FILE).is_file() and waited_s < timeout_s:
        sleep(_WAIT_S)
        waited_s += _WAIT_S


def watch(
    run_dir: Path,
    stop: Callable[[], bool] = lambda: False,
    *,
    console: Console | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show the run of `run_dir` until it ends or `stop()` says so; without a terminal, one line a second.

    Raises ConfigError when `run_dir` is not the folder of a run.
    """
    console = console or Console(file=sys.stdout)
    tail, view = StepTail(run_dir / STEPS_FILE), View()
    if not console.is_terminal:
        _follow(run_dir, tail, view, stop, lambda: console.print(view.line(), soft_wrap=True, markup=False), sleep, 1.0)
        return
    with Live(view.screen(), console=console, auto_refresh=False) as live:
        _follow(run_dir, tail, view, stop, lambda: live.update(view.screen(), refresh=True), sleep, 0.1)


def _follow(
    run_dir: Path,
    tail: StepTail,
    view: View,
    stop: Callable[[], bool],
    show: Callable[[], None],
    sleep: Callable[[float], None],
    period_s: float,
) -> None:
    while True:
        ended = run_has_ended(run_dir)  # before the records are read, so that none of the last ones is missed
        for record in tail.poll():
            view.add(record)
        show()
        if ended or stop():
            return
        sleep(period_s)
