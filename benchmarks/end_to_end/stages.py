"""One frame's way, stage by stage, from the camera to the robot's driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.end_to_end.results import Section, Summary
from splitvla_edge.daemon.channel import Channel, FrameSeen, Message
from splitvla_edge.daemon.control import ControlLoop
from splitvla_edge.fallback import Asked, Chunk, Command, FallbackSettings, Ready, State
from splitvla_edge.fallback.machine import FallbackMachine
from splitvla_edge.robots.action_space import ActionSpace, Kind
from splitvla_edge.robots.base import RobotState
from splitvla_shared.nouns import Image, StageTimes

# The stages in the frame's order: name in the table, and which of StageTimes it is.
WAY: tuple[tuple[str, str], ...] = (
    ("preprocess", "preprocess_ms"),
    ("encode", "encode_ms"),
    ("compress", "compress_ms"),
    ("network, both ways", "network_ms"),
    ("check and decode payload", "decode_payload_ms"),
    ("queue", "queue_ms"),
    ("prefill", "prefill_ms"),
    ("decode", "decode_ms"),
    ("detokenise", "detokenize_ms"),
)
_WARM_UP = 5
TEXT = """`network` is the call's round trip less the server's own total, uplink and downlink and gRPC together: to
tell one from the other would take the difference of two machines' clocks. `capture` is reading one recorded frame; a
live camera adds its exposure and transfer. `control` is one tick of the control process with a fresh action in its
channel; the command also waits for that tick, half a control period on average. Framework is everything but encode,
network and backbone."""


def framework_ms(stages: StageTimes) -> float:
    """All that is not encode, wire or backbone."""
    return stages.total_ms - stages.encode_ms - stages.network_ms - stages.prefill_ms - stages.decode_ms


@dataclass(frozen=True, slots=True)
class Ends:
    """The two ends of the way that a call does not see, milliseconds a sample."""

    capture_ms: Sequence[float]
    control_ms: Sequence[float]


def section(ends: Ends, rungs: Mapping[str, Sequence[StageTimes]]) -> Section:
    """A row a stage, p50/p90/p99/max for each rung; rungs: what each measured, by name."""
    rows: list[tuple[str, ...]] = []
    metrics: dict[str, Summary] = {}
    for rung, samples in rungs.items():
        series: dict[str, Sequence[float]] = {"capture": ends.capture_ms}
        series |= {stage: [getattr(times, name) for times in samples] for stage, name in WAY}
        series |= {
            "control": ends.control_ms,
            "preprocess to detokenise": [times.total_ms for times in samples],
            "of it framework": [framework_ms(times) for times in samples],
        }
        total = Summary.of(series["preprocess to detokenise"]).p50
        for stage, values in series.items():
            summary = Summary.of(values)
            metrics[f"{rung}/{stage}"] = summary
            share = "" if stage in ("capture", "control") else f"{summary.p50 / total:.1%}"
            rows.append((rung, stage, *summary.cells(2), share))
    return Section(
        name="stages",
        title="End to end by stage, milliseconds",
        header=("payload", "stage", "p50", "p90", "p99", "max", "share of p50"),
        rows=tuple(rows),
        n=min(len(samples) for samples in rungs.values()),
        metrics=metrics,
        text=TEXT,
    )


def capture_ms(read: Callable[[int], Image], count: int, n: int) -> list[float]:
    """Times of reading frames one after the other."""
    return [_timed(lambda index=index: read(index % count)) for index in range(n)]  # type: ignore[misc]


class _Driver:
    """A robot whose driver returns at once."""

    def __init__(self, dims: int) -> None:
        self.action_space = ActionSpace(Kind.DELTA_EE, (-10.0,) * dims, (10.0,) * dims, gripper=dims - 1)

    def read_state(self) -> RobotState:
        return RobotState(ready=True)

    def apply(self, command: Command) -> None:
        pass

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Peer:
    """The control end of a real socket pair."""

    generation, up = 1, True

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def receive(self) -> list[Message]:
        return self._channel.receive()

    def send(self, message: Message) -> None:
        self._channel.send(message)

    def replace(self, why: str) -> None:
        raise AssertionError("nothing hangs here")


def control_ms(n: int, dims: int = 7, control_hz: float = 5.0) -> list[float]:
    """Times of ticks with a fresh action: receive, read the robot, machine, apply, hint, record. Simulated clock."""
    ours, theirs = Channel.pair()
    other = Channel(theirs)
    robot = _Driver(dims)
    machine = FallbackMachine(FallbackSettings(), robot.action_space, 1 / control_hz)
    loop = ControlLoop(machine, robot, _Peer(ours), lambda record: None, clock=lambda: 0.0)
    other.send(Ready(dims, 1, "0" * 16))
    samples = []
    for tick in range(n + _WARM_UP):
        now = tick / control_hz
        other.receive()
        sequence = machine.highest_sequence + 1
        other.send(FrameSeen(now, tick))
        other.send(Asked(sequence, machine.epoch, now, now + 0.1))
        other.send(Chunk(sequence, machine.epoch, now, now, ((0.01,) * dims,)))
        samples.append(_timed(lambda now=now: loop.tick(now)))  # type: ignore[misc]
    if machine.state is not State.NOMINAL:
        raise RuntimeError(f"the machine is in {machine.state.value}: it did not take the actions")
    ours.close()
    other.close()
    return samples[_WARM_UP:]


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3
