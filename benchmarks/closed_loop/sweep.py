"""Many conditions on the real clock: delays, links and precisions, with the fallback ladder and without it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.closed_loop.evaluation import DAEMON, PLAIN, REAL, Evaluation
from benchmarks.closed_loop.results import Result, TaskResult
from benchmarks.closed_loop.runner import Tell, against, serving
from benchmarks.closed_loop.trained import halves, trained
from benchmarks.link.synthetic import PROCESSES

DELAYS_MS = (0.0, 50.0, 100.0, 200.0, 400.0)  # beyond half a second no connection lasts: docs/wire.md
PRECISIONS = ("bf16", "int8", "nf4")  # fp32 is the delay of 0
CONTROL_HZ = 10.0
LADDER, PATIENT, BARE = "ladder", "ladder, 1.5 s", "plain"
_PATIENT_MS = 1500
# A run whose first action never comes need not wait for longer than it takes to load a small model.
_START = "simulator.start_s=20"
_AGES = ("fallback.max_age_ms", "fallback.deadline_max_ms", "fallback.probe_deadline_ms")
_SETS = {LADDER: (_START,), PATIENT: (_START, *(f"{name}={_PATIENT_MS}" for name in _AGES)), BARE: ()}
_LOADING_S = {DAEMON: 7.0, PLAIN: 3.0}  # of a run
_BETWEEN_S = 1.0  # of an episode
_DONE_SHARE = 0.35  # of an episode's time, for one that gets done


@dataclass(frozen=True, slots=True)
class Condition:
    """One row. kind: delay, trace or precision, of which `value` is one. client: LADDER, PATIENT or BARE."""

    kind: str
    value: str
    client: str
    evaluation: Evaluation

    @property
    def name(self) -> str:
        return f"{self.kind} {self.value}, {self.client}"

    @property
    def file(self) -> str:
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()) + ".json"

    @property
    def expected_s(self) -> float:
        """A guess: an episode with answers in time is short, one without them lasts to its end."""
        how = self.evaluation
        hopeless = self.client == LADDER and how.delay_ms >= 300.0
        share = 1.0 if hopeless else min(1.0, _DONE_SHARE * (1 + how.delay_ms / 300.0))
        episode_s = _BETWEEN_S + share * how.steps / how.control_hz
        return len(how.tasks) * (_LOADING_S[how.client] + how.episodes * episode_s)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One condition's episodes, all tasks together."""

    condition: Condition
    tasks: tuple[TaskResult, ...]

    @property
    def episodes(self) -> int:
        return sum(task.episodes for task in self.tasks)

    @property
    def successes(self) -> int:
        return sum(task.successes for task in self.tasks)

    @property
    def steps(self) -> list[int]:
        return sorted(step for task in self.tasks for step in task.steps)

    @property
    def moving(self) -> float:
        """Share of control ticks with an action."""
        ticks = sum(task.ticks for task in self.tasks)
        return sum(task.motions for task in self.tasks) / ticks if ticks else 0.0

    @property
    def oldest_s(self) -> float:
        return max(task.oldest_s for task in self.tasks)


def conditions(base: Evaluation, traces: Sequence[str] = tuple(PROCESSES)) -> list[Condition]:
    """In the order in which they are run. base: tasks, episodes and seed of all of them. traces: names or files."""
    base = dataclasses.replace(base, clock=REAL)
    found = []
    for delay in DELAYS_MS:
        clients = (LADDER, BARE) if delay < 200.0 else (LADDER, PATIENT, BARE)
        found += [_condition("delay", f"{delay:g} ms", client, base, delay_ms=delay) for client in clients]
    for trace in traces:
        found += [_condition("trace", Path(trace).stem, client, base, trace=trace) for client in (LADDER, BARE)]
    for precision in PRECISIONS:
        found += [_condition("precision", precision, client, base, precision=precision) for client in (LADDER, BARE)]
    return found


def _condition(kind: str, value: str, client: str, base: Evaluation, **changes: object) -> Condition:
    who = {"client": PLAIN} if client == BARE else {"client": DAEMON, "sets": (*base.sets, *_SETS[client])}
    return Condition(kind, value, client, dataclasses.replace(base, **changes, **who))  # type: ignore[arg-type]


def sweep(chosen: Sequence[Condition], out: Path, tell: Tell, done: Callable[[Condition], None]) -> list[Outcome]:
    """Run what `out` does not hold yet, so that a sweep that was interrupted goes on where it was.

    One server a precision, on for all conditions of it. done: told of each condition that is over.
    Raises SplitVLAError and ProcessLost.
    """
    outcomes = []
    first = chosen[0].evaluation
    with halves(first.checkpoint or trained(), first.bundles) as bundles, _Servers(bundles) as servers:
        for condition in chosen:
            file = out / condition.file
            if not file.exists():
                evaluation = condition.evaluation
                found = against(servers.address(evaluation), evaluation, bundles, tell)
                Result(condition.name, "benchmarks.closed_loop", tuple(found.tasks)).save(file)
            outcomes.append(Outcome(condition, Result.load(file).tasks))
            done(condition)
    return outcomes


class _Servers:
    """Mutable state: the server of the precision that was asked for last."""

    def __init__(self, bundles: Path) -> None:
        self._bundles, self._precision = bundles, ""
        self._stack = contextlib.ExitStack()
        self._address = ""

    def __enter__(self) -> _Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def address(self, evaluation: Evaluation) -> str:
        if evaluation.precision != self._precision:
            self._stack.close()
            self._address = self._stack.enter_context(serving(evaluation, self._bundles))
            self._precision = evaluation.precision
        return self._address
