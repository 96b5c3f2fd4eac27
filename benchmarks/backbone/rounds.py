"""Interleaved rounds of all contenders, bounded in time, and who did not come through.

Rules of this file: everyone in turn, so that what disturbs the machine disturbs all alike; who fails is out with a
remark and the others go on, because a machine with a GPU is lent by the minute.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from benchmarks.backbone.contenders import Case, Contender, Timing
from benchmarks.backbone.figures import Condition
from splitvla_shared.errors import SplitVLAError

_WARM_UP_S = 150.0  # of one contender, which may compile
# What torch, its compiler, transformers and our engine raise.
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, OSError, AssertionError, SplitVLAError)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Rounds:
    """Answers and walls of who came through; a sentence on each that did not, or on how many rounds there were."""

    samples: Mapping[Condition, tuple[list[Timing], list[float]]]
    remarks: Sequence[str]


def sample(
    contenders: Mapping[Condition, Contender],
    cases: Sequence[Case],
    n: int,
    warm_ups: int,
    tell: Tell,
    seconds: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """`n` rounds, or as many as fit into the seconds, one at least. Who fails, or takes too long to warm up, is out."""
    staying = dict(contenders)
    remarks = _warm_up(staying, cases, warm_ups, tell)
    began = clock()
    found: dict[Condition, tuple[list[Timing], list[float]]] = {condition: ([], []) for condition in staying}
    turn = 0
    while turn < n and (not turn or clock() - began < seconds):
        tell(f"round {turn + 1} of {n}")
        for condition, contender in list(staying.items()):
            started = time.perf_counter()
            try:
                timings = contender(_shown(cases, condition, turn))
            except _FAILURES as error:
                remarks.append(_out(staying, condition, error))
                continue
            found[condition][0].extend(timings)
            found[condition][1].append(time.perf_counter() - started)
        turn += 1
    if turn < n:
        remarks.append(f"{turn} of {n} rounds in {seconds:g} s.")
    return Rounds({condition: pair for condition, pair in found.items() if pair[1]}, remarks)


def _warm_up(staying: dict[Condition, Contender], cases: Sequence[Case], turns: int, tell: Tell) -> list[str]:
    """Remarks on those that are out then."""
    remarks = []
    for condition, contender in list(staying.items()):
        tell(f"{condition.precision}: {condition.engine}, {condition.draft}, {condition.robots}")
        try:
            with at_most(_WARM_UP_S):
                for turn in range(turns):
                    contender(_shown(cases, condition, turn))
        except _FAILURES as error:
            remarks.append(_out(staying, condition, error))
    return remarks


def _shown(cases: Sequence[Case], condition: Condition, turn: int) -> list[Case]:
    return [cases[(turn + robot) % len(cases)] for robot in range(condition.robots)]


def _out(staying: dict[Condition, Contender], condition: Condition, error: Exception) -> str:
    del staying[condition]
    said = (str(error).strip().splitlines() or [""])[0][:200]
    return (
        f"{condition.engine}, draft {condition.draft}, {condition.robots} robots is out: {type(error).__name__}: {said}"
    )


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what runs longer, where Python is next in charge; only on the main thread of a POSIX
    system, nothing elsewhere."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not warm after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
