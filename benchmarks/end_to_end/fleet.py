"""Many robots against one server: their processes started together, what they saw, and what both sides cost."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.end_to_end.robot import READY, Job, Told
from benchmarks.processes import ProcessLost

_START_S = 0.2  # from the last robot's being ready to the start
_SAMPLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """The end of a run. cpu: processors in use on average, by the server and by all robots; rss in bytes.

    None where the server is on another machine.
    memory: (seconds, server's RSS, one robot's RSS), a row a sample.
    """

    robots: tuple[Told, ...]
    seconds: float
    server_cpu: float | None
    server_rss: int | None
    memory: tuple[tuple[float, int, int], ...]

    @property
    def robots_cpu(self) -> float:
        return sum(robot.cpu_s for robot in self.robots) / self.seconds

    @property
    def latencies_ms(self) -> list[float]:
        return [latency for robot in self.robots for latency in robot.latencies_ms]

    @property
    def model_ms(self) -> list[float]:
        """What the model took, of each answer, as the server says."""
        return [each for robot in self.robots for each in robot.model_ms]

    @property
    def server_ms(self) -> float | None:
        """Processor time of the server an answer; None without one, or where the server is elsewhere."""
        if self.server_cpu is None or not self.latencies_ms:
            return None
        return self.server_cpu / self.actions_per_s * 1e3

    @property
    def actions_per_s(self) -> float:
        return len(self.latencies_ms) / self.seconds

    @property
    def accepted(self) -> float:
        """Draft tokens that were right, an answer; 0 without one."""
        return sum(robot.accepted for robot in self.robots) / max(1, len(self.latencies_ms))

    @property
    def fairness(self) -> float:
        """Jain's index of the robots' answers: 1 when all got the same, 1/n when one got everything."""
        counts = [len(robot.latencies_ms) for robot in self.robots]
        squares = sum(count * count for count in counts)
        return sum(counts) ** 2 / (len(counts) * squares) if squares else 0.0

    @property
    def misses(self) -> Mapping[str, int]:
        total: dict[str, int] = {}
        for robot in self.robots:
            for kind, count in robot.misses.items():
                total[kind] = total.get(kind, 0) + count
        return total

    @property
    def missed(self) -> str:
        """The misses in words."""
        return ", ".join(f"{number} {kind}" for kind, number in sorted(self.misses.items())) or "none"


def run_fleet(
    job: Job, server_pid: int | None, count: int, seconds: float, folder: Path, step: Callable[[float], object]
) -> Fleet:
    """`count` robots for `seconds`, their starts spread over one period. Raises ProcessLost when one fails."""
    robots = [_start(job, index, count, seconds, folder) for index in range(count)]
    try:
        server = psutil.Process(server_pid) if server_pid else None
        start_at = _begin(robots)
        time.sleep(max(0.0, start_at - time.monotonic()))
        cpu_before = sum(server.cpu_times()[:2]) if server else 0.0
        memory = _watch(server, psutil.Process(robots[0].pid), start_at, seconds, step)
        cpu_after = sum(server.cpu_times()[:2]) if server else 0.0
        told = tuple(_told(robot, job.deadline_s + 30) for robot in robots)
    finally:
        for robot in robots:
            robot.kill()
            robot.wait()
    rss = server.memory_info().rss if server else None
    server_cpu = (cpu_after - cpu_before) / seconds if server else None
    return Fleet(told, seconds, server_cpu, rss, tuple(memory))


def _start(job: Job, index: int, count: int, seconds: float, folder: Path) -> subprocess.Popen[str]:
    mine = dataclasses.replace(job, name=f"robot{index}", offset_s=index / count / job.control_hz, seconds=seconds)
    file = folder / f"robot{index}.json"
    mine.write(file)
    command = [sys.executable, "-m", "benchmarks.end_to_end.robot", str(file)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _begin(robots: Sequence[subprocess.Popen[str]]) -> float:
    """Wait until all are connected, however busy the machine is, and give them their start."""
    for robot in robots:
        assert robot.stdout is not None
        if robot.stdout.readline().strip() != READY:
            _told(robot, 5.0)  # says why it failed
            raise ProcessLost("a robot process ended before it was ready")
    start_at = time.monotonic() + _START_S
    for robot in robots:
        assert robot.stdin is not None
        robot.stdin.write(f"{start_at!r}\n")
        robot.stdin.flush()
    return start_at


def _watch(
    server: psutil.Process | None,
    robot: psutil.Process,
    start_at: float,
    seconds: float,
    step: Callable[[float], object],
) -> list[tuple[float, int, int]]:
    rows = []
    while (t := time.monotonic() - start_at) < seconds:
        if robot.status() != psutil.STATUS_ZOMBIE:
            rows.append((t, server.memory_info().rss if server else 0, robot.memory_info().rss))
        step(t / seconds)
        time.sleep(min(_SAMPLE_S, max(0.0, seconds - t)))
    return rows


def _told(robot: subprocess.Popen[str], timeout_s: float) -> Told:
    try:
        out, err = robot.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ProcessLost(f"a robot process did not end within {timeout_s:.0f} s of its time") from error
    if robot.returncode:
        last = err.strip().splitlines() or ["it said nothing"]
        raise ProcessLost(f"a robot process failed: {last[-1][:200]}")
    return Told.read(out)
