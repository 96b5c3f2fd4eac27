"""The step log: written without waiting, read back whole, summed up."""

from __future__ import annotations

import errno
import io
import threading
from pathlib import Path
from typing import Any

import pytest

from splitvla_edge.daemon.record import (
    LineWriter,
    StepRecord,
    StepTail,
    make_unused,
    read_steps,
    run_has_ended,
    summarise,
    write_run,
)
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import StageTimes

RECORD = StepRecord(
    tick=1,
    t=0.2,
    state="NOMINAL",
    cause="action executed",
    epoch=1,
    command=(0.1, -0.2, 1.0),
    sequence=4,
    age_ms=120.0,
    gripper=1.0,
    stages=StageTimes(encode_ms=20.0, total_ms=100.0),
    wire_bytes=2048,
)
HELD = StepRecord(2, 0.4, "HOLD", "no action", 1, (0.0, 0.0, 1.0), miss="MISSED", lateness_ms=3.0)


def write(path: Path, *records: StepRecord) -> None:
    writer = LineWriter(path)
    for record in records:
        writer.put(record.to_json())
    writer.close()


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "steps.jsonl", RECORD, HELD)
    assert read_steps(tmp_path / "steps.jsonl") == [RECORD, HELD]


def test_a_torn_last_line_is_left_out_and_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    line = HELD.to_json().encode()
    path.write_bytes(RECORD.to_json().encode() + b"\n" + line[:20])
    tail = StepTail(path)
    assert tail.poll() == read_steps(path) == [RECORD]
    with path.open("ab") as file:
        file.write(line[20:] + b"\n")
    assert tail.poll() == [HELD]
    assert tail.poll() == []


@pytest.mark.parametrize("line", ["{}", "[]", "nonsense", '{"tick": 1}', "3"])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(RECORD.to_json() + "\n" + line + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_steps(path)


def test_a_run_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"steps\.jsonl"):
        read_steps(tmp_path / "steps.jsonl")
    with pytest.raises(ConfigError, match=r"run\.json"):
        run_has_ended(tmp_path)


def test_run_json_says_whether_the_run_has_ended(tmp_path: Path) -> None:
    write_run(tmp_path, {"ended": False, "bundle": tmp_path})
    assert not run_has_ended(tmp_path)
    write_run(tmp_path, {"ended": True})
    assert run_has_ended(tmp_path)


class StuckFile:
    """Stands for a disk that hangs until told otherwise, or refuses every write."""

    def __init__(self, error: OSError | None) -> None:
        self.writing, self.release, self.error = threading.Event(), threading.Event(), error

    def __enter__(self) -> StuckFile:
        return self

    def __exit__(self, *_: object) -> None: ...

    def write(self, data: bytes) -> int:
        self.writing.set()
        if self.error is not None:
            raise self.error
        assert self.release.wait(5.0)
        return len(data)

    def truncate(self, size: int) -> None:
        raise OSError(errno.EINVAL, "this is no regular file")


class SmallDisk(io.FileIO):
    """A file on a disk with `room` bytes left, which takes the part of a line that it has room for."""

    room = 12

    def write(self, data: Any, /) -> int:
        taken = bytes(data)[: self.room]
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(taken)
        return super().write(taken)

    def truncate(self, size: int | None = None, /) -> int:
        assert size is not None
        self.room += self.tell() - size
        return super().truncate(size)


def test_a_disk_that_fills_up_in_the_middle_of_a_line_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "steps.jsonl"
    disk = SmallDisk(path, "wb")
    monkeypatch.setattr(Path, "open", lambda *_, **__: disk)
    writer = LineWriter(path)
    for line in ("one", "two", "a long line", "six", "too"):
        writer.put(line)
    writer.close()
    monkeypatch.undo()
    assert path.read_text() == "one\ntwo\nsix\n"
    assert writer.failed == 2
    assert capsys.readouterr().err.count("no space left for a whole line; the log has gaps") == 1


def test_a_full_disk_that_nobody_can_be_told_of_costs_no_line_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, gone = tmp_path / "steps.jsonl", StuckFile(OSError(errno.EIO, "Input/output error"))
    disk = SmallDisk(path, "wb")
    monkeypatch.setattr(Path, "open", lambda *_, **__: disk)
    monkeypatch.setattr("sys.stderr", gone)
    writer = LineWriter(path)
    for line in ("one", "a long line", "six"):
        writer.put(line)
    writer.close()
    monkeypatch.undo()
    assert path.read_text() == "one\nsix\n"


def test_a_disk_that_hangs_costs_lines_and_never_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StuckFile(None)
    monkeypatch.setattr(Path, "open", lambda *_, **__: file)
    writer = LineWriter(tmp_path / "steps.jsonl", capacity=2)
    writer.put("first")
    assert file.writing.wait(5.0)
    for _ in range(5):
        writer.put("more")
    assert writer.dropped == 3
    file.release.set()
    writer.close()


def test_a_full_disk_is_counted_and_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = StuckFile(OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(Path, "open", lambda *_, **__: file)
    writer = LineWriter(tmp_path / "steps.jsonl")
    for _ in range(3):
        writer.put("line")
    writer.close()
    assert writer.failed == 3
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_a_folder_that_can_t_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        LineWriter(tmp_path / "file" / "steps.jsonl")
    with pytest.raises(ConfigError, match="can't be written"):
        write_run(tmp_path / "file", {})


def test_a_run_is_summed_up() -> None:
    held = [HELD._replace(tick=2 + i, t=0.4 + 0.2 * i, miss="MISSED" if i == 0 else "") for i in range(3)]
    summary = summarise([RECORD, *held])
    assert summary.shares == {"NOMINAL": 0.25, "HOLD": 0.75}
    assert summary.longest_hold_s == pytest.approx(0.4)
    assert (summary.answers, summary.misses) == (1, {"MISSED": 1})
    assert summary.stages["total_ms"] == (100.0, 100.0)
    assert summary.bytes_per_frame == 2048
    assert summary.lateness_p99_ms == 3.0
    assert "4 ticks in 0.6 s: NOMINAL 25.0%, HOLD 75.0%" in summary.line()


def test_clipped_answers_are_counted() -> None:
    """An id outside the bins is no motion by default; how often it happens must not stay hidden."""
    summary = summarise([RECORD, RECORD._replace(clipped=2), RECORD._replace(clipped=1)])
    assert summary.clipped == 2
    assert "2 clipped" in summary.line()


def test_a_run_without_ticks_is_summed_up_too() -> None:
    assert "0 ticks" in summarise([]).line()


def test_runs_that_begin_in_the_same_second_have_a_folder_each(tmp_path: Path) -> None:
    assert [make_unused(tmp_path / "runs" / "now").name for _ in range(3)] == ["now", "now-2", "now-3"]
    (tmp_path / "file").write_text("")
    (tmp_path / "unmounted").symlink_to(tmp_path / "disk")
    for name in ("file", "unmounted"):
        with pytest.raises(ConfigError, match="can't be made"):
            make_unused(tmp_path / name / "now")
