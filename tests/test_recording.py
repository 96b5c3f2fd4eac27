"""Recordings to distil from: what is written can be read, files stay bounded, a full disk does not matter."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitvla_edge.answers import Answer
from splitvla_edge.local import recording as module
from splitvla_edge.local.recording import AnswerRecorder
from splitvla_edge.local.settings import RecordingSettings
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import Observation
from splitvla_shared.recording import Answers, read_recording, write_answers

FINGERPRINT = "ab" * 32
PATCHES, DIM = 4, 8
STILL = np.array([False, True])
ROW_BYTES = PATCHES * DIM * 2


def answer(number: int, instruction: str = "pick", tokens: tuple[int, ...] = (5, 6)) -> Answer:
    observation = Observation(number, (np.zeros((2, 2, 3), np.uint8),), instruction, 0.0)
    return Answer(
        observation, (np.full((PATCHES, DIM), number, np.float32),), np.array([[0.25, -number / 100]]), tokens
    )


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FILE_BYTES", 3 * ROW_BYTES)


def numbers(folder: Path) -> list[float]:
    return [float(value) for answers in read_recording(folder) for value in answers.patches[:, 0, 0]]


def test_what_was_answered_is_read_back_in_order(tmp_path: Path) -> None:
    recorder = AnswerRecorder(tmp_path, FINGERPRINT, STILL, 1 << 20)
    for number in range(3):
        recorder.add(answer(number, "place" if number == 1 else "pick"))
    recorder.close()
    (answers,) = read_recording(tmp_path)
    assert (answers.fingerprint, answers.instructions, answers.instruction.tolist()) == (
        FINGERPRINT,
        ("pick", "place"),
        [0, 1, 0],
    )
    assert answers.patches.dtype == np.float16
    assert answers.still.tolist() == [False, True]
    assert answers.normalized[2].tolist() == [[0.25, pytest.approx(-0.02)]]
    assert answers.tokens.tolist() == [[5, 6]] * 3


def test_a_continuous_head_has_no_tokens_and_numbers_beyond_float16_stay_finite(tmp_path: Path) -> None:
    recorder = AnswerRecorder(tmp_path, FINGERPRINT, STILL, 1 << 20)
    recorder.add(answer(100_000, tokens=()))
    recorder.close()
    (answers,) = read_recording(tmp_path)
    assert answers.tokens.shape == (1, 0)
    assert np.isfinite(answers.patches).all()


def test_files_are_bounded_and_two_sessions_share_a_folder(tmp_path: Path) -> None:
    for _ in range(2):
        written = threading.Semaphore(0)
        recorder = AnswerRecorder(tmp_path, FINGERPRINT, STILL, 1 << 20, write=_then(written.release))
        for number in range(7):
            recorder.add(answer(number))
            if number % 3 == 2:
                assert written.acquire(timeout=5.0)
        recorder.close()
    assert sorted(len(answers) for answers in read_recording(tmp_path)) == [1, 1, 3, 3, 3, 3]


def _then(done: Callable[[], None]) -> Callable[[Path, Answers], None]:
    def write(path: Path, answers: Answers) -> None:
        write_answers(path, answers)
        done()

    return write


def test_a_recording_ends_at_its_size_and_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = AnswerRecorder(tmp_path, FINGERPRINT, STILL, 2 * ROW_BYTES + 1)
    for number in range(6):
        recorder.add(answer(number))
    recorder.close()
    assert numbers(tmp_path) == [0.0, 1.0]
    assert capsys.readouterr().err == (
        f"splitvla-edge: the recording in {tmp_path} ends here: it has reached its size\n"
    )


def test_a_disk_that_is_full_ends_the_recording_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = threading.Semaphore(0)

    def full(path: Path, answers: Answers) -> None:
        tried.release()
        raise OSError(errno.ENOSPC, "No space left on device")

    recorder = AnswerRecorder(tmp_path, FINGERPRINT, STILL, 1 << 20, write=full)
    for number in range(9):
        recorder.add(answer(number))
        if number == 2:
            assert tried.acquire(timeout=5.0)
    recorder.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert "can't be written: No space left on device" in line


def test_a_disk_that_is_slow_costs_frames_and_never_waits(tmp_path: Path) -> None:
    go_on = threading.Event()

    def slow(path: Path, answers: Answers) -> None:
        assert go_on.wait(5.0)
        write_answers(path, answers)

    recorder = AnswerRecorder(tmp_path, FINGERPRINT, STILL, 1 << 20, write=slow)
    for number in range(30):
        recorder.add(answer(number))
    go_on.set()
    recorder.close()
    assert recorder.dropped > 0
    assert len(numbers(tmp_path)) + recorder.dropped == 30


def test_a_file_that_could_not_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(OSError, match="No space"):
        write_answers(tmp_path / "answers-0-0.npz", good())
    assert list(tmp_path.iterdir()) == []


def good() -> Answers:
    return Answers(
        FINGERPRINT,
        STILL,
        np.zeros((2, PATCHES, DIM), np.float16),
        np.zeros((2, 1, 2), np.float32),
        np.zeros((2, 2), np.int32),
        ("pick",),
        np.zeros(2, np.int64),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"patches": np.zeros((2, PATCHES, DIM), np.float32)},
        {"normalized": np.zeros((3, 1, 2), np.float32)},
        {"instruction": np.array([0, 1])},
        {"instruction": np.array([-1, 0])},
        {"tokens": np.zeros(4, np.int32)},
        {"still": np.zeros(3, np.bool_)},
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_answers(tmp_path / "answers-0-0.npz", replace(good(), **changes))
    with pytest.raises(ConfigError, match="do not belong together"):
        list(read_recording(tmp_path))


@pytest.mark.parametrize("data", [b"", b"noise", b"PK\x03\x04 noise"])
def test_bytes_that_are_no_recording_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "answers-0-0.npz").write_bytes(data)
    with pytest.raises(ConfigError, match="is no recording"):
        list(read_recording(tmp_path))


def test_an_empty_folder_and_one_that_can_t_be_made_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no recording"):
        list(read_recording(tmp_path))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="can't be made"):
        AnswerRecorder(tmp_path / "file", FINGERPRINT, STILL, 1)
    with pytest.raises(ConfigError, match="max_mb"):
        RecordingSettings(max_mb=0)
