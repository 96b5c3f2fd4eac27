"""Starts a process of the daemon, starts it again when it dies, and is our end of the channel to it.

Where a standby is wanted, a second process of the same kind is begun once the first one has spoken. It waits to be
released; when the first one dies it takes over at once, so that the robot need not stand still for a whole start.

Rules of this file: whatever goes wrong while a process is begun, it is tried again; nothing that is printed keeps the
calling thread or the supervising one.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from splitvla_edge.daemon.datagrams import ChannelClosed, ChannelError, Datagrams
from splitvla_shared.operator_lines import Printer

FATAL = (2, 3)  # exit codes of ConfigError, ObservationError, BundleError and SpecMismatch: a restart mends none
_BACKOFF_S = (0.1, 5.0)  # first and last; a robot stands still meanwhile
_GOOD_RUN_S = 10.0  # a process that lived this long starts the back-off anew
_LOOK_S = 1.0  # between looks whether the first process has spoken
_WITHOUT_STANDBY_S = 5.0  # after one that could not be begun
_END_S = 3.0
# A unit's signal goes to every process of it, but these two are for the control process, which knows what they ask.
_NOT_FOR_OTHERS = {signal.SIGHUP, signal.SIGUSR1}

M = TypeVar("M")

Process = subprocess.Popen[str]


def start_subcommand(name: str, settings_json: str, fd: int) -> Process:
    """`perceive` or `simulate`, with its settings as the first line of standard input and its own process group.

    Raises OSError where the machine has no more processes, memory or files.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_OTHERS)  # of this thread; the new process inherits it
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "splitvla_edge", name, "--fd", str(fd)],
            stdin=subprocess.PIPE,
            text=True,
            pass_fds=(fd,),
            start_new_session=True,  # Ctrl-C is for the control process, which closes the channel
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once; `wait` tells
        process.stdin.write(settings_json + "\n")
        process.stdin.flush()
    return process


def release_subcommand(process: Process, line: str = "") -> None:
    """Its turn has come: `line`, and then the end of its standard input."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(line)


@dataclass(frozen=True, slots=True)
class _Begun(Generic[M]):
    """A process, and our end of the channel to it."""

    process: Process
    channel: Datagrams[M]


class Supervisor(Generic[M]):
    """One process and the channel to it; no call waits or raises. Owned by the control process.

    Mutable state: the process and the channel, exchanged by the supervising thread under a lock that nobody holds for
    longer than a non-blocking call, and what is to be said of them. `fatal` is the exit code with which the process
    gave up for good. `restarts` counts the starts that were refused too.
    """

    def __init__(
        self,
        name: str,
        pair: Callable[[], tuple[Datagrams[M], socket.socket]],
        start: Callable[[int], Process],
        release: Callable[[Process], None] = release_subcommand,
        *,
        standby: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """name: in messages. pair: a new channel: our end, and the other. start: fd of that to the started process.

        release: tells a started process to go to work. standby: keep a second one waiting for that.
        """
        self.name = name
        self.fatal: int | None = None
        self.restarts = 0
        self.on_fatal: Callable[[], None] = lambda: None
        self._pair, self._start, self._release, self._clock = pair, start, release, clock
        self._wants_standby, self._spoken = standby, False
        self._killed_for = self._refusal = ""
        self._printer = Printer()
        self._standby: _Begun[M] | None = None
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._channel: Datagrams[M] | None = None
        self._process: Process | None = None
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
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_END_S)
            finally:  # also when Ctrl-C breaks this off; it does nothing to one that has ended
                process.kill()
        if self._thread.is_alive():
            self._thread.join(_END_S)
        if (standby := self._take_standby()) is not None:  # it has nothing to bring to an end
            standby.process.kill()
            standby.process.wait()
            standby.channel.close()
        self._printer.close()

    def receive(self) -> list[M]:
        with self._lock:
            try:
                messages = [] if self._channel is None else self._channel.receive()
            except ChannelClosed:
                return []
            except ChannelError as error:
                self._kill(f"talked nonsense ({error})")
                return []
        self._spoken |= bool(messages)
        return messages

    def replace(self, why: str) -> None:
        """Kill the process, so that another one takes its place. why: what it did, such as "hung"."""
        with self._lock:
            self._kill(why)

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
            ready = self._standby is not None and self._standby.process.poll() is None
            if ready or self._clock() - started >= _GOOD_RUN_S:
                backoff_s = _BACKOFF_S[0]
            self.restarts += 1
            then = "another one takes over" if ready else f"it is started again in {backoff_s:.1f} s"
            self._printer.say(f"{self.name} {self._what_happened(code)}; {then}")
            if not ready:
                self._ending.wait(backoff_s)
                backoff_s = min(backoff_s * 2, _BACKOFF_S[1])

    def _what_happened(self, code: int | None) -> str:
        killed_for, self._killed_for = self._killed_for, ""
        if code is None:
            return f"can't be started ({self._refusal})"
        return f"{killed_for} and ended with {code}" if killed_for else f"ended with {code}"

    def _kill(self, why: str) -> None:
        if self._process is not None:
            self._killed_for = why
            self._process.kill()

    def _run_once(self) -> int | None:
        """Its exit code; None when it could not be begun."""
        begun = self._take_standby() or self._begin()
        if begun is None:
            return None
        process = begun.process
        with self._lock:
            self._process, self._channel, self._spoken = process, begun.channel, False
            self._generation += 1
            ended = self._ending.is_set()
        if ended:  # `end` came while the process was being started, and did not see it
            process.kill()
        self._release(process)
        code = self._wait(process)
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            self._process = self._channel = None
        return code

    def _wait(self, process: Process) -> int:
        """Until it ends; meanwhile the standby is begun, when this one no longer needs all of the machine to start."""
        look_s = _LOOK_S
        while self._wants_standby and self._standby is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(look_s)
            if self._spoken and not self._ending.is_set():
                said, self._standby = self._refusal, self._begin()
                look_s = _WITHOUT_STANDBY_S
                if self._standby is None and self._refusal != said:
                    self._printer.say(f"there is no second {self.name} for now ({self._refusal})")
        return process.wait()

    def _begin(self) -> _Begun[M] | None:
        """None when the machine refuses it, for now: no more memory, processes or files."""
        with contextlib.ExitStack() as on_error:
            try:
                channel, theirs = self._pair()
                on_error.callback(channel.close)
                with theirs:  # closed after the fork: while we held it, the channel would never see the process's end
                    process = self._start(theirs.fileno())
            except OSError as error:
                self._refusal = error.strerror or str(error)
                return None
            on_error.pop_all()
        self._refusal = ""
        return _Begun(process, channel)

    def _take_standby(self) -> _Begun[M] | None:
        """The process that waits; None when there is none that lives."""
        standby, self._standby = self._standby, None
        if standby is None or standby.process.poll() is None:
            return standby
        standby.channel.close()
        return None
