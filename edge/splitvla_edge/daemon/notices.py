"""What the operator reads on standard error during a run: what went wrong, once, and that it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from splitvla_edge.daemon.control import STUCK_S
from splitvla_edge.daemon.operator_lines import Printer
from splitvla_edge.daemon.record import StepRecord
from splitvla_edge.fallback import State


class Story:
    """Which records are worth a line. Pure; mutable state: the last state and the last kind of miss that was told."""

    def __init__(self) -> None:
        self._state, self._miss = State.INIT.value, ""

    def line(self, record: StepRecord) -> str | None:
        """A line for a stop, for a new kind of miss, and for the first answer after one; None otherwise."""
        before, self._state = self._state, record.state
        if record.state == State.SAFE_STOP.value != before:
            why = f"{record.cause}: {record.detail}" if record.detail else record.cause
            return f"SAFE_STOP, {why}; SIGUSR1 resets, SIGTERM ends the run"
        if record.miss and record.miss != self._miss:
            self._miss = record.miss
            return f"{record.state}, {record.detail or record.miss.lower()}"
        if record.stages is not None and self._miss:
            self._miss = ""
            return f"{record.state}, answers come again"
        return None


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
            "Ctrl-C asks for the end of the run, a second one breaks the call off"
        )
