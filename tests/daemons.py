"""`splitvla-edge run` in a process of its own, for the tests that kill things under it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image as PillowImage

from splitvla_edge.daemon.record import STEPS_FILE, StepRecord, StepTail

PATIENCE_S = 120.0  # far above what anything here takes, also on a busy machine: only a failing test waits so long


class Daemon:
    """The process, its step log as it grows, and its children."""

    def __init__(self, bundle: Path, server: str, run_dir: Path, *options: str, folder: Path | None = None) -> None:
        """folder: where it is started."""
        self.run_dir = run_dir
        self.records: list[StepRecord] = []
        self._tail = StepTail(self.run_dir / STEPS_FILE)
        command = [sys.executable, "-m", "splitvla_edge", "run", "--bundle", str(bundle), "--server", server]
        command += ["--run-dir", str(run_dir), "--unnorm-key", "widowx_tiny"]
        # A shared machine may stall for longer than three ticks of 50 ms; what that does is test_control's matter.
        command += ["--threads", "1", "--set", "fallback.hold_to_stop_s=60", "--set", "fallback.overrun_ticks=60"]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
        )

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE_S)  # perception, which holds the other ends, ends with it

    def wait_for(self, what: Callable[[StepRecord], bool]) -> StepRecord:
        """The first new record of which `what` is true."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and self.process.poll() is None:
            new = self._tail.poll()
            self.records += new
            for record in new:
                if what(record):
                    return record
            time.sleep(0.02)
        self.process.kill()
        raise AssertionError(f"it did not happen; last: {self.records[-1:]}, {self.process.communicate(timeout=5)}")

    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def oldest_child(self) -> int:
        """The perception process at work: a standby is begun later. Not by its number, which may begin anew."""
        return min(self.children(), key=_started_at)

    def child(self, command: str) -> int:
        """The process that runs this subcommand."""
        (pid,) = [pid for pid in self.children() if command.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return pid

    def finish(self) -> tuple[int, str, str]:
        """(exit code, standard output, standard error)."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


def _started_at(pid: int) -> int:
    """In the kernel's ticks since boot."""
    after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
    return int(after_name.split()[19])


def gray_frames(folder: Path, count: int = 20) -> Path:
    """A folder of so many pictures, each lighter than the last one."""
    folder.mkdir()
    for index in range(count):
        PillowImage.new("L", (64, 64), 12 * index).convert("RGB").save(folder / f"{index:02}.png")
    return folder


def moving(record: StepRecord) -> bool:
    return record.state == "NOMINAL"
