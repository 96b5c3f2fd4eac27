"""The step log: one record a tick, written by a thread of its own, read back, and summed up."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import StageTimes
from splitvla_shared.operator_lines import say

STEPS_FILE, RUN_FILE = "steps.jsonl", "run.json"
_QUEUE_LINES = 4096

Line = str | Callable[[], str]


_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_STAGES = tuple(field.name for field in dataclasses.fields(StageTimes))


class StepRecord(NamedTuple):
    """What one tick saw and did; a NamedTuple, because every tick makes one.

    t: seconds since the run began. sequence, age_ms: of the action that was executed, None when none was. stages,
    wire_bytes, clipped (tokens outside the action bins): of the newest answer that arrived on this tick. miss, detail:
    the newest miss of this tick, and in words what is wrong. fault: what the robot's driver raised on this tick.
    lateness_ms: the tick's start less its schedule.
    rung: payload of the next call, 0 is the best. horizon_ms: for how long the actions at hand last.
    """

    tick: int
    t: float
    state: str
    cause: str
    epoch: int
    command: tuple[float, ...]
    sequence: int | None = None
    age_ms: float | None = None
    gripper: float | None = None
    stages: StageTimes | None = None
    wire_bytes: int | None = None
    clipped: int = 0
    miss: str = ""
    detail: str = ""
    fault: str = ""
    lateness_ms: float = 0.0
    perception_up: bool = True
    rung: int = 0
    horizon_ms: float = 0.0

    def to_json(self) -> str:
        """One line."""
        data = self._asdict()
        if self.stages is not None:
            data["stages"] = {name: getattr(self.stages, name) for name in _STAGES}
        return _ENCODE(data)

    @classmethod
    def from_json(cls, line: str | bytes) -> StepRecord:
        """Read what `to_json` wrote. Raises ValueError, KeyError or TypeError on anything else."""
        data = {"fault": "", **json.loads(line)}  # of which older logs know nothing
        values = {name: data[name] for name in cls._fields}
        values["command"] = tuple(values["command"])
        if values["stages"] is not None:
            values["stages"] = StageTimes(**values["stages"])
        return cls(**values)


class LineWriter:
    """Lines to a file without ever making the caller wait.

    Owned by the control process; `put` from one thread. Mutable state: the queue, the end of the last whole line in the
    file, and the counts of what was lost: `dropped` when too many lines waited, `failed` when the disk refused.
    """

    def __init__(self, path: Path, capacity: int = _QUEUE_LINES) -> None:
        """Raises ConfigError when the file can't be made."""
        self.dropped = self.failed = 0
        self._path, self._end, self._capacity = path, 0, capacity
        # No lock to wait for and no thread to be handed to: a tick pays for neither. Its length is ours to look at.
        self._queue: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise ConfigError(f"{path} can't be written: {error.strerror}; choose another folder") from error
        self._thread = threading.Thread(target=self._write, name=f"log {path.name}", daemon=True)
        self._thread.start()

    def put(self, line: Line) -> None:
        """A line, or what makes it: that is then the thread's work, and not the caller's."""
        if self._queue.qsize() < self._capacity:
            self._queue.put(line)
        else:
            self.dropped += 1

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is queued, for at most `timeout_s`, and close the file."""
        self._queue.put(None)
        self._thread.join(timeout_s)  # a disk that hangs: the thread ends with the process

    def _write(self) -> None:
        with self._file as file:
            while (line := self._queue.get()) is not None:
                self._write_line(file, line if isinstance(line, str) else line())

    def _write_line(self, file: io.FileIO, line: str) -> None:
        data, reason = line.encode() + b"\n", "no space left for a whole line"
        try:
            if file.write(data) == len(data):
                self._end += len(data)
                return
        except OSError as error:
            reason = str(error.strerror)
        self._take_back_torn_line(file)
        self.failed += 1
        if self.failed == 1:
            say(f"{self._path}: {reason}; the log has gaps")

    def _take_back_torn_line(self, file: io.FileIO) -> None:
        """A disk that fills up takes the first part of a line: without it, what follows can still be read."""
        with contextlib.suppress(OSError):  # a pipe has nothing to take back
            file.truncate(self._end)
            file.seek(self._end)


def write_run(run_dir: Path, content: Mapping[str, Any]) -> None:
    """Replace run.json in one step, so that a reader never sees half of it. Raises ConfigError."""
    draft = run_dir / (RUN_FILE + ".part")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
        draft.replace(run_dir / RUN_FILE)
    except OSError as error:
        raise ConfigError(f"{run_dir / RUN_FILE} can't be written: {error.strerror}; choose another folder") from error


def holds_run(run_dir: Path) -> bool:
    """Whether a run was begun in that folder, whose log another one would overwrite."""
    return os.path.exists(run_dir / RUN_FILE)  # noqa: PTH110 - Path.exists raises where the folder can't be looked into


def make_unused(run_dir: Path) -> Path:
    """Make `run_dir`, or the first of `run_dir`-2, -3, ... that is not there: of two runs at once each has its own.

    Raises ConfigError.
    """
    others = (run_dir.with_name(f"{run_dir.name}-{number}") for number in itertools.count(2))
    for each in itertools.chain((run_dir,), others):
        try:
            each.mkdir(parents=True)
            return each
        except OSError as error:  # noqa: PERF203 - one folder after the other
            if not os.path.lexists(each):
                raise ConfigError(f"{each} can't be made: {error.strerror}; choose another folder") from error
    raise AssertionError("numbers do not end")


def run_has_ended(run_dir: Path) -> bool:
    """Whether run.json says so. Raises ConfigError when `run_dir` is no run's folder."""
    try:
        return json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8")).get("ended") is True
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{run_dir} is not the folder of a run: {RUN_FILE} can't be read ({error})") from error


class StepTail:
    """A steps.jsonl that is still being written. Mutable state: how far it was read, and the torn last line."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._torn, self._line = path, 0, b"", 0

    def poll(self) -> list[StepRecord]:
        """Whole records since the last call; a torn last line waits for its rest. Raises ConfigError."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"{self._path} can't be read: {error.strerror}") from error
        self._offset += len(data)
        *lines, self._torn = (self._torn + data).split(b"\n")
        return [self._parse(line) for line in lines]

    def _parse(self, line: bytes) -> StepRecord:
        self._line += 1
        try:
            return StepRecord.from_json(line)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._path} line {self._line} is no step record: {error!r}") from error


def read_steps(path: Path) -> list[StepRecord]:
    """All whole records of a step log; a torn last line is left out. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"{path} is not there; a run's folder holds {STEPS_FILE}")
    return StepTail(path).poll()


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in numbers. shares: state to its share of the ticks. stages: name to (p50, p99) in ms, over the answers.

    clipped: answers of which at least one token was no action token.
    """

    ticks: int
    duration_s: float
    shares: Mapping[str, float]
    longest_hold_s: float
    answers: int
    clipped: int
    misses: Mapping[str, int]
    stages: Mapping[str, tuple[float, float]]
    bytes_per_frame: float
    lateness_p99_ms: float

    def line(self) -> str:
        """The run on one line, for the end of `run`."""
        shares = ", ".join(f"{state} {share:.1%}" for state, share in self.shares.items())
        misses = ", ".join(f"{count} {name}" for name, count in self.misses.items()) or "no misses"
        p50, p99 = self.stages.get("total_ms", (0.0, 0.0))
        return (
            f"{self.ticks} ticks in {self.duration_s:.1f} s: {shares or 'none'}; {self.answers} answers "
            f"(p50 {p50:.0f} ms, p99 {p99:.0f} ms, {self.bytes_per_frame:,.0f} B a frame), "
            f"{self.clipped} clipped, {misses}; longest hold {self.longest_hold_s:.1f} s; "
            f"ticks late by {self.lateness_p99_ms:.1f} ms (p99)"
        )


def summarise(records: Sequence[StepRecord]) -> RunSummary:
    """Sum up a run."""
    states = Counter(record.state for record in records)
    answered = [record.stages for record in records if record.stages is not None]
    sizes = [record.wire_bytes for record in records if record.wire_bytes is not None]
    return RunSummary(
        ticks=len(records),
        duration_s=records[-1].t - records[0].t if records else 0.0,
        shares={state: count / len(records) for state, count in states.items()},
        longest_hold_s=_longest_hold_s(records),
        answers=len(answered),
        clipped=sum(record.clipped > 0 for record in records),
        misses=dict(Counter(record.miss for record in records if record.miss)),
        stages={name: _quantiles([getattr(times, name) for times in answered]) for name in _STAGES} if answered else {},
        bytes_per_frame=sum(sizes) / len(sizes) if sizes else 0.0,
        lateness_p99_ms=_quantiles([record.lateness_ms for record in records])[1],
    )


def _longest_hold_s(records: Iterable[StepRecord]) -> float:
    longest, since = 0.0, math.inf
    for record in records:
        since = min(since, record.t) if record.state == "HOLD" else math.inf
        longest = max(longest, record.t - since)
    return longest


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    """(p50, p99) by nearest rank; zeros when empty."""
    if not values:
        return 0.0, 0.0
    ordered = sorted(values)
    rank = [min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1) for share in (0.5, 0.99)]
    return ordered[rank[0]], ordered[rank[1]]
