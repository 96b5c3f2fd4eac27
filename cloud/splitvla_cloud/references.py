"""The frames of each session that a next one may be a difference from. Bounded: what is forgotten costs a key frame.

Rules of this file:
 - A frame comes in whole: all of its cameras were decoded, or none is remembered.
 - Sessions share nothing. Which frame is meant, sequence and checksum say; this is memory, not the judge.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from splitvla_shared.codec.model import Reference

# The frame that a robot builds on, and the newest after it: the robot may build on any whose answer it gets.
MAX_FRAMES = 4
# Of one session. Four frames of one camera with 512 columns are 2 MiB, of eight cameras 16 MiB.
MAX_SESSION_BYTES = 32 << 20
# Of all sessions: 256 robots with one camera each; the ones that were silent for longest go first.
MAX_TOTAL_BYTES = 512 << 20

Frame = tuple[Reference, ...]  # one a camera


class ReferenceStore:
    """Thread-safe. Mutable state: the frames of each session by sequence, and their bytes, under one lock."""

    def __init__(self, session_bytes: int = MAX_SESSION_BYTES, total_bytes: int = MAX_TOTAL_BYTES) -> None:
        self._session_bytes, self._total_bytes = session_bytes, total_bytes
        self._lock = threading.Lock()
        self._sessions: OrderedDict[int, dict[int, Frame]] = OrderedDict()  # longest silent first
        self._bytes = 0

    def get(self, session: int, sequence: int, camera: int) -> Reference | None:
        """One camera of a frame; None where it is not here."""
        with self._lock:
            frame = self._sessions.get(session, {}).get(sequence, ())
            return frame[camera] if camera < len(frame) else None

    def add(self, session: int, sequence: int, frame: Sequence[Reference], used: int | None = None) -> None:
        """Remember a frame that was decoded whole. used: the sequence that it was a difference from.

        What is older than `used` goes: the robot has a newer one to build on. Nothing is kept of a frame that is larger
        than a session may be.
        """
        with self._lock:
            frames = self._sessions.setdefault(session, {})
            self._sessions.move_to_end(session)
            self._drop(frames, sequence)
            for old in [each for each in frames if used is not None and each < used]:
                self._drop(frames, old)
            frames[sequence] = tuple(frame)
            self._bytes += _size(frame)
            while len(frames) > MAX_FRAMES or sum(map(_size, frames.values())) > self._session_bytes:
                # `used` goes last: it is the one frame that the robot is known to know of.
                self._drop(frames, min(frames, key=lambda each: (each == used, each)))
            if not frames:
                del self._sessions[session]
            while self._bytes > self._total_bytes:
                _, silent = self._sessions.popitem(last=False)
                self._bytes -= sum(map(_size, silent.values()))

    @property
    def size(self) -> int:
        """Bytes of all references."""
        with self._lock:
            return self._bytes

    def _drop(self, frames: dict[int, Frame], sequence: int) -> None:
        self._bytes -= _size(frames.pop(sequence, ()))


def _size(frame: Sequence[Reference]) -> int:
    return sum(reference.numbers.nbytes for reference in frame)
