"""Recordings to distil from: embeddings, instruction and the server's answer, frame by frame, in numpy's own format.

A recording is a folder of files `answers-<session>-<number>.npz`, each an uncompressed numpy archive with `n` frames:

    version       int64, 1
    fingerprint   text, of the model whose encoder gave the embeddings, without a codec
    still         bool (dims,), True where the statistics leave no range, so that what is said moves nothing
    patches       float16 (n, cameras * patches, embed_dim)
    normalized    float32 (n, chunk_length, dims), what the server said, in [-1, 1]
    tokens        int32 (n, chunk_length * dims), the same as tokens; (n, 0) of a continuous head
    instructions  text (m,), the sentences of this file
    instruction   int64 (n,), index into them

A file has its name only once it is whole; what a crash left is a `.part`, which nobody reads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from splitvla_shared.archives import read_arrays
from splitvla_shared.errors import ConfigError

VERSION = 1
PATTERN = "answers-*.npz"


@dataclass(frozen=True, slots=True)
class Answers:
    """The frames of one file; see this module's first lines."""

    fingerprint: str
    still: npt.NDArray[np.bool_]
    patches: npt.NDArray[np.float16]
    normalized: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int32]
    instructions: tuple[str, ...]
    instruction: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.patches)


def write_answers(path: Path, answers: Answers) -> None:
    """Write one file, whole or not at all. Raises OSError when there is no room."""
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.savez(
                file,
                version=np.int64(VERSION),
                fingerprint=np.str_(answers.fingerprint),
                still=answers.still,
                patches=answers.patches,
                normalized=answers.normalized,
                tokens=answers.tokens,
                instructions=np.array(answers.instructions, np.str_),
                instruction=answers.instruction,
            )
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def read_recording(folder: Path) -> Iterator[Answers]:
    """File by file, in the order of their names. Raises ConfigError when there are none, or one is no such file."""
    files = sorted(folder.glob(PATTERN))
    if not files:
        raise ConfigError(f"{folder} holds no recording ({PATTERN}); record one with run --record-distill")
    for file in files:
        yield _read(file)


def _read(path: Path) -> Answers:
    try:
        with path.open("rb") as file:
            stored = read_arrays(file)
        if int(stored["version"]) != VERSION:
            raise ValueError(f"version {int(stored['version'])}, this is {VERSION}")
        answers = Answers(
            str(stored["fingerprint"]),
            stored["still"],
            stored["patches"],
            stored["normalized"],
            stored["tokens"],
            tuple(stored["instructions"].tolist()),
            stored["instruction"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no recording of this version: {error}; remove it") from error
    _check(path, answers)
    return answers


def _check(path: Path, answers: Answers) -> None:
    count = len(answers)
    shaped = (
        answers.patches.dtype == np.float16
        and answers.patches.ndim == answers.normalized.ndim == 3
        and answers.tokens.ndim == 2
        and answers.still.shape == answers.normalized.shape[2:]
        and answers.instruction.shape == (count,)
        and len(answers.normalized) == len(answers.tokens) == count > 0
    )
    if not shaped or not 0 <= answers.instruction.min() <= answers.instruction.max() < len(answers.instructions):
        raise ConfigError(f"{path} holds arrays that do not belong together; remove it")
