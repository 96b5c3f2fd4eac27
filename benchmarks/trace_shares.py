"""What the robot is given on recorded links: our machine against two plain clients, by the source of every tick.

Simulated time throughout: the fallback machine that runs on the robot, the link model, and a server and an encoder that
take their time. All clients send over the same links. Real traces are read from where they lie (--traces); without
them, the generated ones that are shipped.

The plain clients ask, wait up to a second, and play what they get, whatever its age; one sends nothing when it has no
action left, the other repeats its last. Both always send the smallest payload, which is the kindest choice for them.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fallback_sim import Way, simulate
from benchmarks.link.conditions import Conditions
from benchmarks.link.messages import MessageLink
from benchmarks.link.synthetic import PROCESSES, shipped
from benchmarks.link.traces import Trace, joined, read_delays, read_rates
from benchmarks.report import heading, table
from benchmarks.trace_plot import draw
from splitvla_edge.fallback import FallbackSettings, State

ENCODE_MS = 40.0
SERVER_MS, SERVER_SIGMA = 80.0, 0.15  # median, and sigma of the logarithm
REPLY_BYTES = 300
FPS = 30.0
TIMEOUT_S = 1.0
LONGEST_S = 600.0  # of a trace
# Bytes of a frame of 256 x 4096: the three plain schemes, and three rungs of assumed sizes, as a learned codec makes.
LADDER = (2_097_156, 1_049_604, 557_060, 208_896, 69_920, 24_000)
_PING_S = 0.2
_DOWN = Conditions(rate_mbps=20.0, delay_ms=15.0)  # where nobody measured the way down


@dataclass(frozen=True, slots=True)
class Road:
    """A recorded link: both directions, and where it comes from."""

    name: str
    up: Conditions
    down: Conditions
    duration_s: float


@dataclass(frozen=True, slots=True)
class Robot:
    """How a robot is run: control period and actions a reply."""

    dt_s: float
    chunk_length: int

    @property
    def name(self) -> str:
        return f"{1 / self.dt_s:g} Hz, K={self.chunk_length}"


ROBOTS = (Robot(0.05, 16), Robot(0.05, 8), Robot(0.2, 1))
_PATIENT = FallbackSettings(hold_to_stop_s=600.0, local_to_stop_s=600.0)

# Where a tick's command comes from. stale: an action older than its maximum age. without: there was no action; the
# plain client then sends nothing, and the repeating one its last action again.
SOURCES = ("fresh", "coast", "wait", "hold", "local", "stale", "without")
_OF_STATE = {
    State.NOMINAL: "fresh", State.DEGRADED: "fresh", State.COAST: "coast", State.WAIT: "wait", State.HOLD: "hold",
    State.LOCAL: "local", State.INIT: "hold", State.SAFE_STOP: "hold",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ticks:
    """Shares of the ticks by source, the oldest action that was executed, and the median payload of moving ticks.

    repeated_ms: the oldest, where the last action is sent again for want of another.
    """

    shares: dict[str, float]
    oldest_ms: float
    median_bytes: float
    repeated_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    road: str
    robot: str
    client: str
    ticks: Ticks


class Journey:
    """One frame's way there and back: link up, server, link down. Mutable state: the links and the server's mood."""

    def __init__(self, road: Road, seed: int) -> None:
        self._up, self._down = MessageLink(road.up, seed=seed), MessageLink(road.down, seed=seed + 1)
        self._random = random.Random(seed)

    def __call__(self, sent_at: float, size: int) -> Way:
        server_ms = SERVER_MS * math.exp(self._random.gauss(0.0, SERVER_SIGMA))
        arrived = self._up.send(sent_at, size)
        answered = self._down.send(arrived + server_ms / 1e3, REPLY_BYTES) if arrived < math.inf else arrived
        return Way((answered - sent_at) * 1e3 - server_ms, server_ms)


def ours(road: Road, robot: Robot, seed: int, *, local: bool = False) -> Ticks:
    """The machine that is on the robot, with its default settings, but that no SAFE_STOP ends the run: it holds on."""
    moments = simulate(
        Journey(road, seed), min(road.duration_s, LONGEST_S), chunk_length=robot.chunk_length, dt_s=robot.dt_s,
        fps=FPS, encode_ms=ENCODE_MS, ladder=LADDER, settings=_PATIENT, local=local, seed=seed,
    )  # fmt: skip
    sources = Counter(_OF_STATE[moment.command.state] for moment in moments)
    remote = [moment for moment in moments if moment.command.sequence is not None]
    ages = [moment.command.age_s for moment in remote if moment.command.age_s is not None]
    sent = [LADDER[moment.hint.rung] for moment in remote]
    shares = {name: count / len(moments) for name, count in sources.items()}
    return Ticks(shares, max(ages, default=0.0) * 1e3, statistics.median(sent) if sent else 0.0)


def plain(road: Road, robot: Robot, seed: int) -> Ticks:
    """The plain client, and the one that repeats: they differ in what they do without an action, and in its age."""
    limit_s = FallbackSettings().max_age_s(robot.dt_s, robot.chunk_length)
    seconds = min(road.duration_s, LONGEST_S)
    answers = _answers(Journey(road, seed), LADDER[-1], seconds)
    arrived_at, captured_at = next(answers)
    left, oldest_s, repeated_s, have = 0, 0.0, 0.0, math.inf
    sources: Counter[str] = Counter()
    ticks = round(seconds / robot.dt_s)
    for now in (number * robot.dt_s for number in range(ticks)):
        while arrived_at <= now:
            left, have = robot.chunk_length, captured_at
            arrived_at, captured_at = next(answers)
        repeated_s = max(repeated_s, now - have)
        oldest_s = max(oldest_s, now - have) if left else oldest_s
        sources["without" if not left else "stale" if now - have > limit_s else "fresh"] += 1
        left = max(0, left - 1)
    shares = {name: count / ticks for name, count in sources.items()}
    return Ticks(shares, oldest_s * 1e3, LADDER[-1], repeated_s * 1e3)


def _answers(journey: Callable[[float, int], Way], size: int, until: float) -> Iterator[tuple[float, float]]:
    """(when it arrived, when its frame was taken) of each answer to a client that has one call in flight."""
    now = 0.0
    while now < until:
        captured_at = int(now * FPS + 1e-9) / FPS
        way = journey(now + ENCODE_MS / 1e3, size)
        took_s = (ENCODE_MS + way.network_ms + way.server_ms) / 1e3
        now += min(took_s, TIMEOUT_S)
        if took_s <= TIMEOUT_S:
            yield now, captured_at
    yield math.inf, now


def roads(traces: Path | None) -> list[Road]:
    """The recorded links, or the generated ones."""
    if traces is None:
        up = {name: shipped(name) for name in PROCESSES}
        return [Road(name, Conditions(trace, 15.0), _DOWN, trace.duration_s) for name, trace in up.items()]
    wifi = joined([read_rates(path) for path in sorted(traces.glob("multipath-wifi-cellular/*_wifi.csv"))])
    return [
        _mahimahi(traces, "LTE, AT&T 2016, driving", "ATT-LTE-driving-2016"),
        _mahimahi(traces, "LTE, T-Mobile, driving", "TMobile-LTE-short"),
        _nuwins(traces, "LTE, Verizon, driving (2022)", "driving/lte/throughput", "driving/lte/ping"),
        _nuwins(traces, "5G mmWave, driving", "driving/5g/throughput", "driving/5g/ping"),
        _nuwins(traces, "5G mmWave, walking towards", "walking/5g/toward", "walking/5g/toward"),
        Road("Wi-Fi, New York", Conditions(wifi, 5.0), _DOWN, wifi.duration_s),
    ]


def _mahimahi(traces: Path, name: str, stem: str) -> Road:
    up, down = (read_rates(traces / "mahimahi" / f"{stem}.{way}") for way in ("up", "down"))
    return Road(name, Conditions(up, 25.0), Conditions(down, 25.0), up.duration_s)


def _nuwins(traces: Path, name: str, rate: str, ping: str) -> Road:
    folder = traces / "nuwins-5g-uplink"
    up = read_rates(folder / "throughput" / f"{rate}.list")
    there = read_delays(folder / "ping" / f"{ping}.list", _PING_S)
    half = Trace(there.slot_s, there.values / 2)
    return Road(name, Conditions(up, half), Conditions(20.0, half), up.duration_s)


def measure(chosen: Sequence[Road], seed: int) -> list[Row]:
    """Every client on every road."""
    rows = []
    for road in chosen:
        for robot in ROBOTS:
            clients = {
                "ours": ours(road, robot, seed),
                "ours, with a local policy": ours(road, robot, seed, local=True),
                "plain": plain(road, robot, seed),
            }
            rows += [Row(road.name, robot.name, client, ticks) for client, ticks in clients.items()]
    return rows


def line(row: Row) -> tuple[str, ...]:
    """The cells of one row."""
    shares = [f"{row.ticks.shares.get(source, 0.0):.1%}" for source in SOURCES]
    repeated = f" ({row.ticks.repeated_ms:,.0f})" if row.ticks.repeated_ms is not None else ""
    oldest = f"{row.ticks.oldest_ms:,.0f}{repeated}"
    return (row.road, row.robot, row.client, *shares, f"{row.ticks.median_bytes / 1e3:,.0f}", oldest)


def main() -> int:
    """Print the table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, metavar="DIR", help="recorded traces (the generated ones)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the shares there")
    arguments = parser.parse_args()
    chosen = roads(arguments.traces)
    rows = measure(chosen, arguments.seed)
    where = "recorded links" if arguments.traces else "generated links"
    command = f"python -m benchmarks.trace_shares{' --traces DIR' if arguments.traces else ''}"
    print(heading(f"Ticks by source on {where}", command, packages=("splitvla",), seed=arguments.seed, n=len(chosen)))
    header = ("link", "robot", "client", *SOURCES, "median kB", "oldest action ms (repeating)")
    print(table(header, map(line, rows)))
    if arguments.plot is not None:
        draw(rows, SOURCES, arguments.plot, title=f"Where each tick's command comes from, on {where}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
