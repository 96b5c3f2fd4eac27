"""make demo: real WidowX frames through the edge daemon and the server, with the server killed for two seconds.

Everything is real but the weights: two server processes (the second is loaded and waits for the first one's port), the
edge daemon with its control and perception processes, gRPC over loopback. The weights are random, so the actions mean
nothing; the timing, the bytes and the fallbacks are what there is to see.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.frames import CLIP, INSTRUCTION, read_frames
from benchmarks.processes import ProcessLost, ServerProcess, free_port
from benchmarks.timeline import Marker, draw
from benchmarks.tiny_checkpoint import write_tiny_checkpoint
from splitvla_cloud.split import split
from splitvla_edge.daemon import new_run_dir
from splitvla_edge.record import STEPS_FILE, StepRecord, StepTail, read_steps, summarise
from splitvla_edge.watch import wait_for_run, watch
from splitvla_shared.errors import SplitVLAError

EDGE_LOG = "edge.log"
# Both machines of the real system are this one here: on few cores, spinning threads cost more than they give.
_ONE_THREAD = ("--threads", "1")
_HZ = 5.0  # of the clip, and of the WidowX's own control


@dataclass(frozen=True, slots=True)
class Script:
    """Seconds from the first action: when the server dies, how long it stays dead, when the run ends."""

    kill_at_s: float = 8.0
    dead_for_s: float = 2.0
    end_s: float = 22.0


class Demo:
    """One run of the demo. Mutable state: the tail of the step log and the markers, owned by the director's thread."""

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


def run_demo(run_dir: Path, script: Script) -> int:
    """The whole demo; 0 when the robot was told to hold while the server was dead, and moved again afterwards."""
    print(f"SplitVLA demo: real WidowX frames, random weights, so the actions mean nothing. Results in {run_dir}")
    bundles = _make_bundles(run_dir)
    address = f"127.0.0.1:{free_port()}"
    print("starting two servers: one serves, one is loaded and waits to take over ...", flush=True)
    demo = Demo(run_dir, script)
    with (
        ServerProcess(bundles / "cloud", *_ONE_THREAD, listen=address) as first,
        _standby(bundles / "cloud", address, first) as second,
        _edge(bundles / "edge", address, run_dir) as edge,
        ThreadPoolExecutor(1) as pool,
    ):
        directed = pool.submit(demo.direct, first, second, edge)
        wait_for_run(run_dir)
        watch(run_dir, stop=directed.done)
        directed.result()
        code = edge.wait(30)
    if code:
        log = (run_dir / EDGE_LOG).read_text(encoding="utf-8").splitlines()
        print(f"demo: the edge daemon ended with {code}; its last words: {log[-1] if log else 'none'}", file=sys.stderr)
    return _report(run_dir, demo.markers) or int(code != 0)


def _sleep_while(condition: Callable[[], bool], seconds: float) -> None:
    """Sleep, but no longer than `condition` holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and condition():
        time.sleep(0.05)


def _make_bundles(run_dir: Path) -> Path:
    print("making a tiny checkpoint in openvla-7b's layout and splitting it ...", flush=True)
    run_dir.mkdir(parents=True)
    write_tiny_checkpoint(run_dir / "checkpoint", seed=0)
    spec = split(run_dir / "checkpoint", run_dir / "bundles")
    print(f"split: {spec.patches} patches of {spec.embed_dim}, fingerprint {spec.fingerprint[:16]}")
    return run_dir / "bundles"


@contextlib.contextmanager
def _standby(bundle: Path, address: str, first: ServerProcess) -> Iterator[ServerProcess]:
    """The second server, warm and frozen, so that the outage lasts as long as the script says and no longer."""
    first.wait_ready()
    with ServerProcess(bundle, *_ONE_THREAD, "--bind-wait-s", "300", listen=address) as second:
        second.wait_loaded()
        second.send(signal.SIGSTOP)
        yield second


@contextlib.contextmanager
def _edge(bundle: Path, address: str, run_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "splitvla_edge", "run", "--bundle", str(bundle), "--server", address]
    command += ["--robot", "replay", "--frames", str(CLIP), "--fps", str(_HZ), "--loop", "--control-hz", str(_HZ)]
    command += ["--instruction", INSTRUCTION, "--unnorm-key", "widowx_tiny", "--run-dir", str(run_dir), *_ONE_THREAD]
    with (run_dir / EDGE_LOG).open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.terminate()


def _report(run_dir: Path, markers: Sequence[Marker]) -> int:
    records = read_steps(run_dir / STEPS_FILE)
    summary = summarise(records)
    (run_dir / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    frames = read_frames()
    shown = [frames[round(index * (len(frames) - 1) / 5)] for index in range(6)]
    picture = run_dir / "timeline.png"
    title = f"A WidowX at {_HZ:g} Hz over the split model; the server is killed and comes back"
    draw(records, picture, title=title, markers=markers, frames=shown)
    print(f"\n{summary.line()}")
    print(f"picture   {picture}\nstep log  {run_dir / STEPS_FILE}\nsummary   {run_dir / 'summary.json'}")
    return _verdict(records, markers)


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=new_run_dir())
    try:
        return run_demo(parser.parse_args().run_dir, Script())
    except SplitVLAError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return error.exit_code
    except ProcessLost as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
