"""The real clock: the edge daemon or a plain client drives the world over a link, and the world waits for nobody."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.closed_loop.actors import SplitActor
from benchmarks.closed_loop.evaluation import Evaluation
from benchmarks.closed_loop.plain import PlainClient
from benchmarks.link import UP, Conditions, LinkProxy
from benchmarks.link.synthetic import PROCESSES, path_of
from benchmarks.link.traces import TraceError, read_rates
from benchmarks.processes import ProcessLost
from splitvla_edge import EdgePolicy
from splitvla_edge.daemon.episodes import Episode, read_episodes
from splitvla_edge.daemon.record import STEPS_FILE, read_steps
from splitvla_edge.robots.metaworld.adapter import action_space
from splitvla_edge.robots.simulator.world import SimulatorSettings, World
from splitvla_shared.errors import ConfigError

# What a benchmark needs and an operator would not want: a hold lasts to the episode's end, so that every episode is
# judged alone, and a stalled machine is no reason to stop an arm that is not there.
_START_S = 40.0
_PATIENT = ("fallback.hold_to_stop_s=600", "fallback.overrun_ticks=1000", f"simulator.start_s={_START_S}")
_BETWEEN_S = 2.0  # from one episode's end to the next one's first action


@dataclass(frozen=True, slots=True)
class Drive:
    """The robot's half of the product, the server's address, and how to drive."""

    bundle: Path
    server: str
    how: Evaluation


@contextlib.contextmanager
def linked(address: str, delay_ms: float, trace: str | None) -> Iterator[str]:
    """The server's address behind a link that adds `delay_ms` to every round trip and has the trace's uplink rate."""
    if not delay_ms and trace is None:
        yield address
        return
    try:
        rates = None if trace is None else read_rates(path_of(trace) if trace in PROCESSES else Path(trace))
    except (TraceError, OSError) as error:
        raise ConfigError(f"--trace {trace}: {error}; a file, or one of {', '.join(PROCESSES)}") from error
    host, _, port = address.rpartition(":")
    conditions = Conditions(delay_ms=delay_ms / 2)
    with LinkProxy((host, int(port)), up=conditions, down=conditions) as link:
        if rates is not None:
            link.set_rate(rates, UP)
        yield link.address


@dataclass(frozen=True, slots=True)
class Driven:
    """Episodes of one task, and the oldest picture that an executed action came from."""

    episodes: Sequence[Episode]
    oldest_s: float


def run_plain(drive: Drive, task: str, world: World) -> Driven:
    """The plain client, in this process."""
    how, period_s = drive.how, 1 / drive.how.control_hz
    with EdgePolicy.connect(
        drive.bundle,
        drive.server,
        unnorm_key=how.unnorm_key,
        scheme=how.scheme,
        threads=how.threads,
        encoder=how.encoder,
        connect_timeout_s=_START_S,
    ) as policy:
        actor = SplitActor(policy, retries=0)
        space = action_space(period_s, SimulatorSettings().max_speed_m_s)
        client = PlainClient(world, actor, space, period_s=period_s, limit=how.steps)
        played = [client.play(task, how.seed + number, how.instruction(task), number) for number in range(how.episodes)]
    return Driven([each.episode for each in played], max(each.oldest_s for each in played))


def run_daemon(drive: Drive, task: str, run_dir: Path) -> Driven:
    """The daemon, episodes one after the other in one run. Raises ProcessLost when it fails."""
    how = drive.how
    command = [sys.executable, "-m", "splitvla_edge", "run", "--bundle", str(drive.bundle), "--server", drive.server]
    command += ["--robot", f"metaworld:{task}", "--instruction", how.instruction(task), "--run-dir", str(run_dir)]
    command += ["--scheme", how.scheme, "--encoder", how.encoder, "--control-hz", f"{how.control_hz:g}"]
    command += ["--threads", str(how.threads), "--seed", str(how.seed), "--episodes", str(how.episodes)]
    command += [] if how.unnorm_key is None else ["--unnorm-key", how.unnorm_key]
    for text in (*_PATIENT, f"simulator.steps={how.steps}", *how.sets):
        command += ["--set", text]
    limit_s = 2 * _START_S + how.episodes * (how.steps / how.control_hz + _BETWEEN_S)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise ProcessLost(f"{task}: {how.episodes} episodes did not end in {limit_s:.0f} s") from error
    if done.returncode:
        raise ProcessLost(f"{task}: the daemon ended with {done.returncode}: {done.stderr[-500:]}")
    ages = [record.age_ms for record in read_steps(run_dir / STEPS_FILE) if record.age_ms is not None]
    return Driven(read_episodes(run_dir), max(ages, default=0.0) / 1e3)
