"""How much is measured, how long that takes, and a bar that says what is left of it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Step = Callable[[float], object]
_FEWEST = 4  # frames that a percentile is still asked of


@dataclass(frozen=True, slots=True)
class Plan:
    """frames: a way. socket_frames: a way and link. scale_s: for each of scale_counts. soak_minutes: 0 for none.

    deadline_s: of a call where many robots share a server. budget_s: for the frames of ways and sockets together.
    """

    frames: int
    control_ticks: int
    socket_frames: int
    scale_counts: tuple[int, ...]
    scale_s: float
    soak_minutes: float = 0.0
    deadline_s: float = 1.0
    budget_s: float = math.inf

    def fitted(self, round_s: float) -> Plan:
        """Fewer frames where a round of all ways takes so long that the budget would not do."""
        rounds = self.budget_s / 2 / round_s
        frames = max(_FEWEST, int(min(self.frames, rounds)))
        return dataclasses.replace(self, frames=frames, socket_frames=max(1, int(min(self.socket_frames, rounds / 8))))


QUICK = Plan(10, 500, 2, (1, 4, 16), 3.0, budget_s=60.0)
FULL = Plan(100, 5000, 10, (1, 2, 4, 8, 16), 20.0, soak_minutes=10.0)


class Watch:
    """The progress bar. Mutable state: expected and spent seconds, and the phase that runs.

    What is expected are seconds; what is left is those of the phases to come, so that the bar moves by time.
    """

    def __init__(self, stream: object = sys.stderr) -> None:
        console = Console(file=stream, stderr=True)  # type: ignore[arg-type]
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._progress.add_task("", total=None)
        self._console, self._done_s = console, 0.0

    def __enter__(self) -> Watch:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def expect(self, seconds: float) -> None:
        """From now on so many seconds are left in all."""
        self._progress.update(self._task, total=self._done_s + seconds)
        self.say(f"about {_minutes(seconds)} from here")

    @contextlib.contextmanager
    def phase(self, name: str, expected_s: float) -> Iterator[Step]:
        """Run a phase; the step function takes the share of it that is done."""
        self._progress.update(self._task, description=name)
        if not self._live:  # a log gets a line a phase
            self.say(f"{name} ...")
        started = time.monotonic()
        begun_s = self._done_s

        def step(share: float) -> None:
            self._progress.update(self._task, completed=begun_s + expected_s * min(share, 1.0))

        yield step
        self._done_s = begun_s + expected_s
        self._progress.update(self._task, completed=self._done_s)
        if not self._live:
            self.say(f"{name}: {time.monotonic() - started:.0f} s")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
