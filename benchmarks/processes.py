"""Real server processes for the demo, the benchmarks and the tests: started, killed, frozen, waited for."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

_READY = re.compile(r"\bready on (\S+:\d+)")
_LOADED = re.compile(r"\bready on\b|\bwaiting for \S+:\d+")
_PATIENCE_S = 180.0  # to start and load: torch alone takes a busy machine a minute; one that ends is seen at once


class ProcessLost(RuntimeError):  # noqa: N818 - what happened, in one word
    """A process ended, or never came to what was waited for."""


class ModuleProcess:
    """`python -m MODULE ARGUMENTS`, a server that says "ready on HOST:PORT", with its output kept.

    Mutable state: the child and the lines it printed, written by one reader thread.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-u", "-m", module, *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._lines: list[str] = []
        self._printed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_ready(self, timeout_s: float = _PATIENCE_S) -> str:
        """The address that it serves on. Raises ProcessLost with its output when it does not get there."""
        return self._wait_for(_READY, timeout_s).group(1)

    def wait_loaded(self, timeout_s: float = _PATIENCE_S) -> None:
        """Until the model is warm, though the port may still be another's."""
        self._wait_for(_LOADED, timeout_s)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def alive(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout_s: float = 30.0) -> int:
        return self._process.wait(timeout_s)

    @property
    def output(self) -> str:
        with self._printed:
            return "".join(self._lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        if self._process.stdout:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._printed:
                self._lines.append(line)
                self._printed.notify_all()
        with self._printed:
            self._ended = True
            self._printed.notify_all()

    def _wait_for(self, pattern: re.Pattern[str], timeout_s: float) -> re.Match[str]:
        with self._printed:
            self._printed.wait_for(lambda: self._ended or self._match(pattern), timeout_s)
            found = self._match(pattern)
        if not found:
            raise ProcessLost(f"the server did not print {pattern.pattern!r} in {timeout_s} s:\n{self.output}")
        return found

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        return next((found for line in self._lines if (found := pattern.search(line))), None)


class ServerProcess(ModuleProcess):
    """`splitvla-cloud serve` in a process of its own."""

    def __init__(self, bundle: Path, *options: str, listen: str = "127.0.0.1:0", precision: str = "fp32") -> None:
        arguments = ("--bundle", str(bundle), "--precision", precision, "--listen", listen)
        super().__init__("splitvla_cloud", "serve", *arguments, *options)


def free_port() -> int:
    """A port of loopback that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_command(
    module: str, arguments: Sequence[str], timeout_s: float = _PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments` to its end, output captured."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
