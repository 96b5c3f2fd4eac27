"""A run of the daemon in which the server is killed and another one takes over, and the pictures of it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from benchmarks.processes import ProcessLost, ServerProcess, free_port
from benchmarks.shows import Script, Show
from benchmarks.timeline import Marker, draw
from splitvla_edge.daemon.record import STEPS_FILE, StepRecord, StepTail, read_steps, summarise
from splitvla_edge.daemon.watch import wait_for_run, watch
from splitvla_shared.errors import ConfigError

EDGE_LOG = "edge.log"
# Both machines of the real system are this one here: on few cores, spinning threads cost more than they give.
_ONE_THREAD = ("--threads", "1")


class Outage:
    """One run with an outage in it. Mutable state, owned by the director's thread: step log's tail, and markers."""

    def __init__(self, run_dir: Path, script: Script) -> None:
        self.run_dir, self.script = run_dir, script
        self.markers: list[Marker] = []
        self._tail = StepTail(run_dir / STEPS_FILE)
        self._records: list[StepRecord] = []

    def direct(self, first: ServerProcess, second: ServerProcess, edge: subprocess.Popen[bytes]) -> None:
        """Kill the server and let the second one take over, by the script; then end the run."""
        try:
            self._wait_for("an action", lambda record: record.state == "NOMINAL", edge)
            _sleep_while(first.alive, self.script.kill_at_s)  # somebody may be quicker and kill it by hand
            self._mark("server killed")
            first.send(signal.SIGKILL)
            time.sleep(self.script.dead_for_s)
            second.send(signal.SIGCONT)
            second.wait_ready()
            self._mark("server back")
            rest_s = self.script.end_s - self.script.kill_at_s - self.script.dead_for_s
            _sleep_while(lambda: edge.poll() is None, rest_s)
        finally:
            edge.terminate()

    def _wait_for(
        self, what: str, found: Callable[[StepRecord], bool], edge: subprocess.Popen[bytes], timeout_s: float = 60.0
    ) -> None:
        give_up = time.monotonic() + timeout_s
        while not any(found(record) for record in self._poll()):
            if edge.poll() is not None or time.monotonic() > give_up:
                raise ProcessLost(f"the edge daemon did not come to {what}; see {self.run_dir / EDGE_LOG}")
            time.sleep(0.05)

    def _poll(self) -> list[StepRecord]:
        new = self._tail.poll()
        self._records += new
        return new

    def _mark(self, text: str) -> None:
        """On the step log's own clock: the time of its newest tick."""
        self._poll()
        self.markers.append(Marker(self._records[-1].t, text))


def run_show(show: Show, run_dir: Path) -> int:
    """The whole of it; 0 when the robot held while the server was dead, moved again, and the show was a success."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if any(run_dir.iterdir()):
        raise ConfigError(f"{run_dir} is not empty; name another --run-dir")
    print(f"SplitVLA demo: {show.intro} Results in {run_dir}", flush=True)
    bundles = show.bundles(run_dir)
    address = f"127.0.0.1:{free_port()}"
    print("starting two servers: one serves, one is loaded and waits to take over ...", flush=True)
    outage = Outage(run_dir, show.script)
    with (
        ServerProcess(bundles / "cloud", *_ONE_THREAD, listen=address) as first,
        _standby(bundles / "cloud", address, first) as second,
        _edge(bundles / "edge", address, run_dir, show.options) as edge,
        ThreadPoolExecutor(1) as pool,
    ):
        directed = pool.submit(outage.direct, first, second, edge)
        wait_for_run(run_dir, 60.0)
        watch(run_dir, stop=directed.done)
        directed.result()
        code = edge.wait(30)
    if code:
        log = (run_dir / EDGE_LOG).read_text(encoding="utf-8").splitlines()
        print(f"demo: the edge daemon ended with {code}; its last words: {log[-1] if log else 'none'}", file=sys.stderr)
    return _report(show, run_dir, outage.markers) or int(code != 0)


def _sleep_while(condition: Callable[[], bool], seconds: float) -> None:
    """Sleep, but no longer than `condition` holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and condition():
        time.sleep(0.05)


@contextlib.contextmanager
def _standby(bundle: Path, address: str, first: ServerProcess) -> Iterator[ServerProcess]:
    """The second server, warm and frozen, so that the outage lasts as long as the script says and no longer."""
    first.wait_ready()
    with ServerProcess(bundle, *_ONE_THREAD, "--bind-wait-s", "300", listen=address) as second:
        second.wait_loaded()
        second.send(signal.SIGSTOP)
        yield second


@contextlib.contextmanager
def _edge(bundle: Path, address: str, run_dir: Path, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "splitvla_edge", "run", "--bundle", str(bundle), "--server", address]
    command += ["--run-dir", str(run_dir), *_ONE_THREAD, *options]
    with (run_dir / EDGE_LOG).open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.terminate()


def _report(show: Show, run_dir: Path, markers: Sequence[Marker]) -> int:
    records = read_steps(run_dir / STEPS_FILE)
    summary = summarise(records)
    (run_dir / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    picture = run_dir / "timeline.png"
    draw(records, picture, title=show.title, markers=markers, frames=show.frames(run_dir))
    print(f"\n{summary.line()}")
    print(f"picture   {picture}\nstep log  {run_dir / STEPS_FILE}\nsummary   {run_dir / 'summary.json'}")
    return _verdict(records, markers) or show.verdict(run_dir)


def _verdict(records: Sequence[StepRecord], markers: Sequence[Marker]) -> int:
    killed, back = (marker.t for marker in markers)
    held = [record.t for record in records if record.t > killed and record.state == "HOLD"]
    moved = [record.t for record in records if record.t > back and record.state == "NOMINAL"]
    if not held or not moved:
        print("FAILED: the robot did not hold while the server was dead, or did not move again after its return")
        return 1
    print(
        f"The server died at {killed:.1f} s: HOLD after {held[0] - killed:.1f} s. It was back at {back:.1f} s: "
        f"the next action came {moved[0] - back:.1f} s later. Every tick had one command."
    )
    return 0
