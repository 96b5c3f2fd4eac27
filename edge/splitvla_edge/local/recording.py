"""Records what a local policy is distilled from: the embeddings of every answered frame, and the answer.

Rules of this file: `add` never waits; a thread writes. A disk that is full or too slow ends or thins the recording, is
said once, and costs the robot nothing. The format is splitvla_shared.recording's.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from splitvla_edge.answers import Answer
from splitvla_edge.local.settings import RecordingSettings
from splitvla_edge.policy import EdgePolicy
from splitvla_shared.errors import ConfigError
from splitvla_shared.recording import Answers, write_answers

_FILE_BYTES = 32 << 20  # of embeddings; as much may wait for the disk, and as much again is being collected
_WAITING_FILES = 1


@contextlib.contextmanager
def recording(settings: RecordingSettings, policy: EdgePolicy) -> Iterator[None]:
    """Record the policy's answers meanwhile, where a folder is set. Raises ConfigError when it can't be made."""
    if settings.folder is None:
        yield
        return
    model = policy.model
    fingerprint = model.spec.uncalibrated().fingerprint
    recorder = AnswerRecorder(settings.folder, fingerprint, model.statistics.still, settings.max_mb * 1_000_000)
    policy.on_answer.append(recorder.add)
    try:
        yield
    finally:
        recorder.close()


@dataclass(frozen=True, slots=True)
class _Row:
    patches: npt.NDArray[np.float16]
    normalized: npt.NDArray[np.float32]
    tokens: tuple[int, ...]
    instruction: str

    @classmethod
    def of(cls, answer: Answer) -> _Row:
        patches = np.concatenate(answer.patches)
        narrow = np.clip(patches, -65504.0, 65504.0).astype(np.float16)  # what is beyond float16 must not become inf
        return cls(narrow, answer.normalized.astype(np.float32), answer.tokens, answer.observation.instruction)


class AnswerRecorder:
    """`add` is the perception loop's. Mutable state: the rows of the next file, the bytes left, and the end."""

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        still: npt.NDArray[np.bool_],
        max_bytes: int,
        *,
        write: Callable[[Path, Answers], None] = write_answers,
    ) -> None:
        """max_bytes: of this session's files; the recording ends there. Raises ConfigError without a folder."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder} can't be made: {error.strerror}; choose another folder") from error
        self._folder, self._fingerprint, self._still = folder, fingerprint, still
        self._left, self._write = max_bytes, write
        self._session = secrets.token_hex(4)
        self._rows: list[_Row] = []
        self._collected = 0
        self._number = 0
        self._ended = False
        self.dropped = 0
        self._full: queue.Queue[list[_Row] | None] = queue.Queue(_WAITING_FILES)
        self._thread = threading.Thread(target=self._write_on, name="recording", daemon=True)
        self._thread.start()

    def add(self, answer: Answer) -> None:
        """One answered frame."""
        if self._ended:
            return
        row = _Row.of(answer)
        if row.patches.nbytes > self._left:
            self._end("it has reached its size")
            return
        self._left -= row.patches.nbytes
        self._rows.append(row)
        self._collected += row.patches.nbytes
        if self._collected >= _FILE_BYTES:
            self._hand_over()

    def close(self) -> None:
        """Write what is there, and wait for the disk."""
        if not self._ended:
            self._hand_over()
        self._full.put(None)
        self._thread.join()

    def _hand_over(self) -> None:
        rows, self._rows, self._collected = self._rows, [], 0
        if not rows:
            return
        try:
            self._full.put_nowait(rows)
        except queue.Full:  # the disk is slower than the robot
            self.dropped += len(rows)
            self._left += sum(row.patches.nbytes for row in rows)

    def _end(self, why: str) -> None:
        self._hand_over()
        self._ended = True
        print(f"splitvla-edge: the recording in {self._folder} ends here: {why}", file=sys.stderr)

    def _write_on(self) -> None:
        while (rows := self._full.get()) is not None:
            path = self._folder / f"answers-{self._session}-{self._number:05}.npz"
            self._number += 1
            try:
                self._write(path, _answers(rows, self._fingerprint, self._still))
            except OSError as error:
                if not self._ended:
                    self._ended = True
                    text = f"{path.name} can't be written: {error.strerror}"
                    print(f"splitvla-edge: the recording in {self._folder} ends here: {text}", file=sys.stderr)


def _answers(rows: list[_Row], fingerprint: str, still: npt.NDArray[np.bool_]) -> Answers:
    instructions = tuple(dict.fromkeys(row.instruction for row in rows))
    return Answers(
        fingerprint=fingerprint,
        still=still,
        patches=np.stack([row.patches for row in rows]),
        normalized=np.stack([row.normalized for row in rows]),
        tokens=np.array([row.tokens for row in rows], np.int32).reshape(len(rows), -1),
        instructions=instructions,
        instruction=np.array([instructions.index(row.instruction) for row in rows], np.int64),
    )
