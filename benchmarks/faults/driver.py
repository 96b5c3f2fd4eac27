"""A robot that is not there: commands arrive through a named pipe, and its own watchdog stops it when none comes.

It knows nothing of the daemon but its commands, so that its account of them is independent of the step log.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WATCHDOG_S = 0.25  # five periods of 50 ms: what a robot's own controller would wait for
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Received:
    """One command as the robot got it, at monotonic seconds."""

    at: float
    tick: int
    state: str
    motion: bool
    stop: bool
    sequence: int | None
    index: int | None
    action: tuple[float, ...]


class FakeDriver:
    """Mutable state: commands in their order, and when the watchdog stopped the robot; written by its one thread."""

    def __init__(self, pipe: Path, watchdog_s: float = WATCHDOG_S) -> None:
        os.mkfifo(pipe)
        self.pipe = pipe
        self.received: list[Received] = []
        self.watchdog_stops: list[float] = []
        self._watchdog_s = watchdog_s
        self._ending = threading.Event()
        self._file = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # also for writing: it then has no end
        self._thread = threading.Thread(target=self._listen, name="driver", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        os.close(self._file)

    def _listen(self) -> None:
        rest = b""
        while not self._ending.is_set():
            ready, _, _ = select.select([self._file], [], [], self._patience_s())
            now = time.monotonic()
            if ready:
                *lines, rest = (rest + os.read(self._file, 65536)).split(b"\n")
                self.received += [_command(line, now) for line in lines]
            elif self.moving_for(now) > self._watchdog_s:
                self.watchdog_stops.append(now)

    def moving_for(self, now: float) -> float:
        """Seconds since the last command of a robot that nobody has stopped; 0 for one that stands."""
        if not self.received or self.received[-1].stop:
            return 0.0
        last = self.received[-1].at
        return 0.0 if self.watchdog_stops and self.watchdog_stops[-1] > last else now - last

    def _patience_s(self) -> float:
        running = self.moving_for(time.monotonic())
        return min(_POLL_S, max(0.001, self._watchdog_s - running)) if running else _POLL_S


def _command(line: bytes, now: float) -> Received:
    data = json.loads(line)
    return Received(
        now, data["tick"], data["state"], data["motion"], data["stop"], data["sequence"], data["index"],
        tuple(data["action"]),
    )  # fmt: skip


@contextlib.contextmanager
def driving(folder: Path, watchdog_s: float = WATCHDOG_S) -> Iterator[FakeDriver]:
    """A driver whose pipe is in `folder`; give the pipe to `splitvla-edge run --commands`."""
    driver = FakeDriver(folder / "commands.pipe", watchdog_s)
    try:
        yield driver
    finally:
        driver.close()
