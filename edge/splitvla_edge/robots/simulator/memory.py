"""Pictures from the simulator to perception through shared memory: the newest wins, and nobody waits for anybody.

Rules of this file: one writer, any number of readers, no lock. The writer fills the slot after the newest one and then
says which is newest. A reader that was overtaken, or that sees another order of writes than was made, finds it out by
the slot's number and checksum and looks again. Numbers never fall, also when the writer is started again.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from splitvla_edge.robots.base import Frame
from splitvla_shared.errors import RobotError
from splitvla_shared.nouns import Image

_SLOTS = 4
MAX_IMAGE_BYTES = 1024 * 1024 * 3
_HEADER = struct.Struct("<8sQB")  # magic, newest number + 1 (0 = none yet), finished
_SLOT = struct.Struct("<QdHHI")  # number + 1, captured at, height, width, checksum
_HEADER_BYTES, _SLOT_HEAD_BYTES = 64, 64
_SLOT_BYTES = _SLOT_HEAD_BYTES + MAX_IMAGE_BYTES
_BYTES = _HEADER_BYTES + _SLOTS * _SLOT_BYTES
_MAGIC = b"SVLAsim1"
_TRIES = 20


class FrameMemory:
    """Mutable state: the mapped memory. Created by the daemon, written by the simulator, read by perception.

    It has no name in any folder: it is gone with the last process that maps it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map = mmap.mmap(fd, _BYTES)

    @classmethod
    def create(cls) -> FrameMemory:
        """Empty memory; pages that no picture touches cost nothing."""
        fd = os.memfd_create("splitvla-frames")
        os.ftruncate(fd, _BYTES)
        memory = cls(fd)
        memory._map[: _HEADER.size] = _HEADER.pack(_MAGIC, 0, 0)
        return memory

    @classmethod
    def open(cls, path: Path) -> FrameMemory:
        """What `create` made in another process of this user. Raises RobotError."""
        try:
            memory = cls(os.open(path, os.O_RDWR))
        except (OSError, ValueError) as error:
            raise RobotError(
                f"the simulator's frame memory {path} can't be opened ({error}); `run` makes it"
            ) from error
        if memory._map[: len(_MAGIC)] != _MAGIC:
            memory.close()
            raise RobotError(f"{path} is not the simulator's frame memory; `run` makes it")
        return memory

    @property
    def path(self) -> Path:
        """Where processes of this user can open it, while this one lives."""
        return Path(f"/proc/{os.getpid()}/fd/{self._fd}")

    def write(self, image: Image, captured_at: float) -> int:
        """Publish a picture; returns its number. Raises RobotError when it is too large."""
        if image.nbytes > MAX_IMAGE_BYTES or image.ndim != 3:
            raise RobotError(f"a picture of shape {image.shape} does not fit into the frame memory")
        number = self._header()[0]
        at = self._slot(number)
        data, (height, width, _) = image.tobytes(), image.shape
        self._map[at : at + _SLOT.size] = bytes(_SLOT.size)  # a reader of the picture that was here looks again
        self._map[at + _SLOT_HEAD_BYTES : at + _SLOT_HEAD_BYTES + len(data)] = data
        head = _SLOT.pack(number + 1, captured_at, height, width, zlib.crc32(data))
        self._map[at : at + _SLOT.size] = head
        self._map[: _HEADER.size] = _HEADER.pack(_MAGIC, number + 1, self._header()[1])
        return number

    def finish(self) -> None:
        """No newer picture will ever come."""
        self._map[: _HEADER.size] = _HEADER.pack(_MAGIC, self._header()[0], 1)

    def newest(self) -> tuple[float, int] | None:
        """Capture time and number of the newest picture; None before the first."""
        head = self._newest_slot()
        return None if head is None else (head[1], head[0])

    def read(self) -> Frame | None:
        """The newest picture; None before the first. Raises RobotError when the memory is damaged."""
        for _ in range(_TRIES):
            head = self._newest_slot()
            if head is None:
                return None
            number, captured_at, height, width, checksum = head
            at = self._slot(number) + _SLOT_HEAD_BYTES
            data = self._map[at : at + height * width * 3]
            if zlib.crc32(data) == checksum:
                return Frame(np.frombuffer(data, np.uint8).reshape(height, width, 3), captured_at, number)
        raise RobotError("the simulator's frame memory is damaged: no picture matches its checksum")

    @property
    def finished(self) -> bool:
        return bool(self._header()[1])

    def close(self) -> None:
        """May be called twice."""
        if not self._map.closed:
            self._map.close()
            os.close(self._fd)

    def _header(self) -> tuple[int, int]:
        _, count, finished = _HEADER.unpack(self._map[: _HEADER.size])
        return count, finished

    def _slot(self, number: int) -> int:
        return _HEADER_BYTES + (number % _SLOTS) * _SLOT_BYTES

    def _newest_slot(self) -> tuple[int, float, int, int, int] | None:
        """(number, captured at, height, width, checksum) of the newest picture, None before the first."""
        for _ in range(_TRIES):
            number = self._header()[0] - 1
            if number < 0:
                return None
            at = self._slot(number)
            stamp, captured_at, height, width, checksum = _SLOT.unpack(self._map[at : at + _SLOT.size])
            if stamp == number + 1 and height * width * 3 <= MAX_IMAGE_BYTES:
                return number, captured_at, height, width, checksum
        raise RobotError("the simulator's frame memory is damaged: no picture is where its number says")


class MemoryCamera:
    """The simulated robot's camera. Owned by the perception process; it needs no first frame, numbers never fall."""

    def __init__(self, memory: FrameMemory) -> None:
        self._memory = memory

    def newest(self, now: float) -> tuple[float, int] | None:
        return self._memory.newest()

    def latest(self, now: float) -> Frame | None:
        return self._memory.read()

    def exhausted(self, now: float) -> bool:
        return self._memory.finished

    def close(self) -> None:
        self._memory.close()
