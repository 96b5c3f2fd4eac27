"""Server, link, camera, daemon and robot of one fault run: real processes, real sockets, real frames."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from benchmarks.faults.camera_clock import CameraClock
from benchmarks.faults.cameras import StreamCamera
from benchmarks.faults.driver import FakeDriver, Received, driving
from benchmarks.faults.scripted import ScriptedServer, scripted
from benchmarks.faults.wall_clock import WallClock
from benchmarks.frames import INSTRUCTION, read_frames
from benchmarks.link import LinkProxy
from benchmarks.processes import ProcessLost, ServerProcess, free_port
from splitvla_edge.daemon.record import STEPS_FILE, StepRecord, read_steps
from splitvla_shared.nouns import Image

HZ = 20.0
PERIOD_S = 1 / HZ
_PATIENCE_S = 60.0
_ONE_THREAD = ("--threads", "1")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a fault needs of its rig. server: "real" (splitvla-cloud serve) or "scripted". standby: a second real
    server, loaded and frozen, that takes over the first one's port; of another model where other_model is set.
    options: of the daemon. wall_clock, camera_clock: one that can be stepped under the daemon, or its camera.
    """

    server: str = "real"
    standby: bool = False
    other_model: bool = False
    options: tuple[str, ...] = ()
    wall_clock: bool = False
    camera_clock: bool = False


@dataclass
class Rig:
    """The parts, for faults to take hold of. Mutable: what the faults do to them."""

    run_dir: Path
    edge_bundle: Path
    link: LinkProxy
    camera: StreamCamera
    driver: FakeDriver
    daemon: subprocess.Popen[bytes]
    server: ServerProcess | None
    standby: ServerProcess | None
    lies: ScriptedServer | None
    wall_clock: WallClock | None
    camera_clock: CameraClock | None
    server_address: str
    extras: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def real(self) -> ServerProcess:
        assert self.server is not None
        return self.server

    @property
    def scripted(self) -> ScriptedServer:
        assert self.lies is not None
        return self.lies

    @property
    def clock(self) -> WallClock:
        assert self.wall_clock is not None
        return self.wall_clock

    @property
    def camera_time(self) -> CameraClock:
        assert self.camera_clock is not None
        return self.camera_clock

    def perception(self) -> int:
        """The pid of the perception process at work: the oldest of the daemon's, because a standby is begun later."""
        children = Path(f"/proc/{self.daemon.pid}/task").glob("*/children")
        pids = [int(pid) for task in children for pid in task.read_text(encoding="ascii").split()]
        if not pids:
            raise ProcessLost("the daemon has no perception process")
        return min(pids, key=_started_at)

    def take_over(self) -> None:
        """Let the second server have the port, once the first one has gone."""
        assert self.standby is not None
        self.standby.send(signal.SIGCONT)
        self.standby.wait_ready()

    def commands(self) -> Sequence[Received]:
        return self.driver.received

    def wait_for(self, what: Callable[[Received], bool], timeout_s: float = _PATIENCE_S) -> Received | None:
        """The first command from now on that is it; None when none came in time, or the daemon ended."""
        seen, until = len(self.driver.received), time.monotonic() + timeout_s
        while time.monotonic() < until and self.daemon.poll() is None:
            for each in self.driver.received[seen:]:
                seen += 1
                if what(each):
                    return each
            time.sleep(PERIOD_S / 5)
        return None

    def records(self) -> list[StepRecord]:
        return read_steps(self.run_dir / STEPS_FILE)


@contextlib.contextmanager
def rigged(bundles: Path, other: Path, folder: Path, setup: Setup, seed: int) -> Iterator[Rig]:
    """A running rig whose robot has begun to move. Raises ProcessLost when it does not."""
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        server = standby = lies = None
        if setup.server == "scripted":
            lies, address = stack.enter_context(scripted(bundles / "edge"))
        else:
            address = ("127.0.0.1", free_port())
            listen = f"127.0.0.1:{address[1]}"
            server = stack.enter_context(ServerProcess(bundles / "cloud", *_ONE_THREAD, listen=listen))
            server.wait_ready()
            if setup.standby:
                second = other if setup.other_model else bundles
                waiting = (*_ONE_THREAD, "--bind-wait-s", "300")
                standby = stack.enter_context(ServerProcess(second / "cloud", *waiting, listen=listen))
                standby.wait_loaded()
                standby.send(signal.SIGSTOP)
        link = stack.enter_context(LinkProxy(address, seed=seed))
        camera = stack.enter_context(StreamCamera(_frames(), HZ))
        driver = stack.enter_context(driving(folder))
        command = _command(bundles / "edge", link.address, camera.address, driver.pipe, folder / "run", setup)
        clock = WallClock(folder) if setup.wall_clock else None
        stamps = CameraClock(folder) if setup.camera_clock else None
        extra = {**(clock.environment if clock else {}), **(stamps.environment if stamps else {})}
        daemon = stack.enter_context(_daemon(command, folder / "edge.log", extra))
        rig = Rig(
            folder / "run", bundles / "edge", link, camera, driver, daemon, server, standby, lies, clock, stamps,
            f"{address[0]}:{address[1]}",
        )  # fmt: skip
        stack.enter_context(rig.extras)
        if rig.wait_for(lambda each: each.motion) is None:
            raise ProcessLost(f"the robot never moved; see {folder / 'edge.log'}")
        yield rig


def _started_at(pid: int) -> int:
    """In the kernel's ticks since boot."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
    return int(after_name.split()[19])


def _frames() -> list[Image]:
    """The clip's frames at half size: the camera's part is not what is measured."""
    return [np.asarray(cv2.resize(frame, (320, 240), interpolation=cv2.INTER_AREA)) for frame in read_frames()]


def _command(bundle: Path, server: str, camera: str, pipe: Path, run_dir: Path, setup: Setup) -> list[str]:
    command = [sys.executable, "-m", "splitvla_edge", "run", "--bundle", str(bundle), "--server", server]
    command += ["--robot", "camera", "--device", camera, "--commands", str(pipe), "--control-hz", str(HZ)]
    command += ["--instruction", INSTRUCTION, "--unnorm-key", "widowx_tiny", "--run-dir", str(run_dir)]
    return [*command, *_ONE_THREAD, *setup.options]


@contextlib.contextmanager
def _daemon(command: Sequence[str], log: Path, extra: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **extra})
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
