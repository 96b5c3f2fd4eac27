"""Starts a process of the daemon, starts it again when it dies, and is our end of the channel to it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from splitvla_edge.datagrams import ChannelClosed, ChannelError, Datagrams

FATAL = (2, 3)  # exit codes of ConfigError, ObservationError, BundleError and SpecMismatch: a restart mends none
_BACKOFF_S = (0.1, 5.0)  # first and last; a robot stands still meanwhile
_GOOD_RUN_S = 10.0  # a process that lived this long starts the back-off anew
_END_S = 3.0

M = TypeVar("M")

Start = Callable[[int], "subprocess.Popen[str]"]


def start_subcommand(name: str, settings_json: str, fd: int) -> subprocess.Popen[str]:
    """`perceive` or `simulate`, with its settings on standard input and its own process group."""
    process = subprocess.Popen(
        [sys.executable, "-m", "splitvla_edge", name, "--fd", str(fd)],
        stdin=subprocess.PIPE,
        text=True,
        pass_fds=(fd,),
        start_new_session=True,  # Ctrl-C is for the control process, which closes the channel
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # it died at once; `wait` tells
        process.stdin.write(settings_json)
    return process


class Supervisor(Generic[M]):
    """One process and the channel to it; no call waits or raises. Owned by the control process.

    Mutable state: the process and the channel, exchanged by the supervising thread under a lock that nobody holds for
    longer than a non-blocking call. `fatal` is the exit code with which the process gave up for good.
    """

    def __init__(
        self,
        name: str,
        pair: Callable[[], tuple[Datagrams[M], socket.socket]],
        start: Start,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """name: in messages. pair: a new channel: our end, and the other. start: fd of that to the started process."""
        self.name = name
        self.fatal: int | None = None
        self.restarts = 0
        self.on_fatal: Callable[[], None] = lambda: None
        self._pair, self._start, self._clock = pair, start, clock
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._channel: Datagrams[M] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._generation = 0
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def up(self) -> bool:
        return self._channel is not None

    @property
    def pid(self) -> int | None:
        """Of the process, None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Close the channel, upon which the process ends by itself; kill it when it does not."""
        self._ending.set()
        with self._lock:
            channel, self._channel = self._channel, None
            process = self._process
            if channel is not None:
                channel.close()
        if process is not None:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._thread.is_alive():
            self._thread.join(_END_S)

    def receive(self) -> list[M]:
        with self._lock:
            try:
                return [] if self._channel is None else self._channel.receive()
            except ChannelClosed:
                return []
            except ChannelError as error:
                print(f"splitvla-edge: {self.name}: {error}; it is started again", file=sys.stderr)
                if self._process is not None:
                    self._process.kill()
                return []

    def send(self, message: M) -> None:
        with self._lock, contextlib.suppress(ChannelClosed):
            if self._channel is not None:
                self._channel.send(message)

    def _supervise(self) -> None:
        backoff_s = _BACKOFF_S[0]
        while not self._ending.is_set():
            started = self._clock()
            code = self._run_once()
            if self._ending.is_set():
                return
            if code in FATAL:
                self.fatal = code
                self.on_fatal()
                return
            if self._clock() - started >= _GOOD_RUN_S:
                backoff_s = _BACKOFF_S[0]
            self.restarts += 1
            print(
                f"splitvla-edge: {self.name} ended with {code}; it is started again in {backoff_s:.1f} s",
                file=sys.stderr,
            )
            self._ending.wait(backoff_s)
            backoff_s = min(backoff_s * 2, _BACKOFF_S[1])

    def _run_once(self) -> int:
        channel, theirs = self._pair()
        try:
            process = self._start(theirs.fileno())
        finally:
            _close(theirs)
        with self._lock:
            self._process, self._channel = process, channel
            self._generation += 1
            ended = self._ending.is_set()
        if ended:  # `end` came while the process was being started, and did not see it
            process.kill()
        code = process.wait()
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            self._process = self._channel = None
        return code


def _close(sock: socket.socket) -> None:
    """Ours to close after the fork: while we held it, the channel would never see the end of the process."""
    sock.close()
