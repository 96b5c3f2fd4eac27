"""What the operator reads on standard error during a run: what went wrong, once, and that it is over."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TextIO

from splitvla_edge.daemon.control import STUCK_S
from splitvla_edge.daemon.record import StepRecord
from splitvla_edge.fallback import State
from splitvla_shared.operator_lines import Printer

_WELL_S = 1.0  # without a fault of the robot: a driver that fails now and then is one story
_MOST_FAULTS = 8  # kinds of one story; a driver may put anything into its texts
_WAITED_S = 5.0  # in INIT for one cause, after which it is told


class Story:
    """Which records are worth a line. Pure; mutable state: the last state, and what was told and is not over yet."""

    def __init__(self) -> None:
        self._state, self._miss = State.INIT.value, ""
        self._faults: set[str] = set()
        self._fault_at = self._missed_at = self._t = 0.0
        self._waited: dict[str, float] = {}

    def line(self, record: StepRecord) -> str | None:
        """A line for a stop, for what is new of the robot's faults, of misses or of a wait in INIT; None otherwise."""
        before, self._state = self._state, record.state
        passed_s, self._t = record.t - self._t, record.t
        of_robot = self._of_robot(record)
        if record.state == State.SAFE_STOP.value != before:
            return f"SAFE_STOP, {_why(record)}; SIGUSR1 resets, SIGTERM ends the run"
        return of_robot or self._of_answers(record) or self._of_waiting(record, passed_s)

    def _of_robot(self, record: StepRecord) -> str | None:
        """Each kind of fault, whatever numbers it names, and that there has been none for a while."""
        if record.fault:
            self._fault_at = record.t
            kind = re.sub(r"\d+", "", record.fault)
            if kind in self._faults or len(self._faults) == _MOST_FAULTS:
                return None
            self._faults.add(kind)
            return f"{record.state}, {record.fault}"
        if self._faults and record.t - self._fault_at >= _WELL_S:
            self._faults.clear()
            return f"{record.state}, the robot's calls succeed again"
        return None

    def _of_answers(self, record: StepRecord) -> str | None:
        """A new kind of miss, and the first answer after one."""
        if record.miss:
            self._missed_at = record.t
        if record.miss and record.miss != self._miss:
            self._miss = record.miss
            why = "" if record.fault else record.detail  # which is then the robot's
            return f"{record.state}, {why or record.miss.lower()}"
        if record.stages is not None and self._miss:
            self._miss = ""
            return f"{record.state}, answers come again"
        return None

    def _of_waiting(self, record: StepRecord, passed_s: float) -> str | None:
        """Each cause that has kept it in INIT for a while in all, where no other line says why."""
        if record.state != State.INIT.value:
            self._waited.clear()
            return None
        before_s = self._waited.get(record.cause, 0.0)
        if before_s >= _WAITED_S or self._faults or (self._miss and record.t - self._missed_at < _WAITED_S):
            return None
        self._waited[record.cause] = before_s + passed_s
        if before_s + passed_s < _WAITED_S:
            return None
        return f"still in INIT, {_why(record)}"


def _why(record: StepRecord) -> str:
    return f"{record.cause}: {record.detail}" if record.detail else record.cause


class Notices:
    """Prints the story on a thread of its own: a terminal that hangs must never hold up a tick.

    Owned by the control process; `add` from one thread. What the queue has no room for is dropped.
    """

    def __init__(self, stream: TextIO, stuck_since: Callable[[], float | None] = lambda: None) -> None:
        """stuck_since: when the call of the robot began that keeps the control thread; none = none does."""
        self._stuck_since = stuck_since
        self._told: float | None = None
        self._story, self._printer = Story(), Printer(stream, self._stuck)

    def add(self, record: StepRecord) -> None:
        if (line := self._story.line(record)) is not None:
            self._printer.say(line)

    def close(self, timeout_s: float = 1.0) -> None:
        """Print what is queued, for at most `timeout_s`."""
        self._printer.close(timeout_s)

    def _stuck(self) -> str | None:
        """Once for each such call: the control thread, which is in it, can say nothing."""
        since = self._stuck_since()
        if since is None or since == self._told:
            return None
        self._told = since
        return (
            f"a call of the robot has not returned for {STUCK_S:g} s; its own controller must stop it; "
            "Ctrl-C asks for the end of the run, a second one breaks the call off; Ctrl-\\ kills this process"
        )
