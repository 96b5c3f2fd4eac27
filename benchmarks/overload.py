"""More robots than a server can answer, on simulated time, with the server's own queue, admission and worker.

    python -m benchmarks.overload

A pass takes what a lognormal draw says, whatever the deadline of the frames in it; what misses its deadline is work for
nothing. The first table holds the order that the queue has against the plain earliest deadline first; the second what
is gained where robots share passes.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from benchmarks.report import heading, table
from splitvla_cloud.admission import PassCost
from splitvla_cloud.engine.interface import Frame, Outcome, Tokens
from splitvla_cloud.worker import GpuWorker, Served
from splitvla_shared.errors import SplitVLAError

_QUEUE_LIMIT = 64
_DIMS = 7
_NO_PATCHES = np.zeros((0, 1), np.float32)


class Unhurried(PassCost):
    """Knows no usual duration, which leaves the plain earliest deadline first."""

    def usual(self, now: float) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class Model:
    """What a backbone costs.

    prefill_s: for each new frame of a pass. pass_s: of a pass at least. passes: of an answer, drawn evenly. sigma: of
    the logarithm of a pass's duration.
    """

    prefill_s: float
    pass_s: float = 0.0
    passes: tuple[int, ...] = (1,)
    sigma: float = 0.3


ONE_PASS_S = 0.066
ONE_PASS = Model(ONE_PASS_S)
_DRAFTED, _UNDRAFTED = (1, 1, 2, 3, 3, 4, 6), (7,)  # passes: where some of a draft's ids are right, and without one
# Those of a 7B are what its products and its weights' bytes take at the rates of an H200's data sheet: not measured.
MODELS: Mapping[str, Model] = {
    "7B, prefill 7 ms, pass 4.7 ms, no drafts": Model(0.007, 0.0047, _UNDRAFTED),
    "7B, prefill 7 ms, pass 4.7 ms, drafts": Model(0.007, 0.0047, _DRAFTED),
    "small, prefill 24 ms, pass 2.3 ms, no drafts": Model(0.024, 0.0023, _UNDRAFTED),
    "small, prefill 24 ms, pass 2.3 ms, drafts": Model(0.024, 0.0023, _DRAFTED),
}


@dataclass(frozen=True, slots=True)
class Crowd:
    """Robots at `hz` with one call in flight each, which is given up at its deadline; the next frame is then sent."""

    robots: int
    deadline_s: float
    hz: float = 5.0
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """answered: of each robot. latencies_ms: of those. wasted: share of the GPU's frames that missed their deadline."""

    answered: tuple[int, ...]
    latencies_ms: tuple[float, ...]
    wasted: float

    @property
    def fairness(self) -> float:
        """Jain's index."""
        squares = sum(count * count for count in self.answered)
        return sum(self.answered) ** 2 / (len(self.answered) * squares) if squares else 0.0


class _Backbone:
    """An engine that takes its time on the simulated clock. Mutable: that clock, and the passes each frame has left."""

    vocab_size = 1
    pass_costs: Mapping[int, float] = {}

    def __init__(self, model: Model, capacity: int, seed: int) -> None:
        self.now = 0.0
        self.capacity = capacity
        self.left: dict[Frame, int] = {}
        self.admitted = 0
        self._model, self._random, self._fresh = model, random.Random(seed), 0

    def describe(self) -> str:
        return "simulated"

    def admit(self, frame: Frame) -> None:
        self.left[frame] = self._random.choice(self._model.passes)
        self.admitted += 1
        self._fresh += 1

    def cancel(self, frame: Frame) -> None:
        self.left.pop(frame, None)

    def step(self) -> list[Outcome]:
        sigma = self._model.sigma
        seconds = max(self._model.pass_s, self._fresh * self._model.prefill_s)
        self.now += seconds * math.exp(self._random.gauss(0.0, sigma) - sigma**2 / 2)
        self._fresh = 0
        self.left = {frame: passes - 1 for frame, passes in self.left.items()}
        ended = [frame for frame, passes in self.left.items() if passes <= 0]
        for frame in ended:
            del self.left[frame]
        return [Outcome(frame, Tokens((0,) * _DIMS, 0.0, 0.0)) for frame in ended]


@dataclass(frozen=True, slots=True)
class _Call:
    sent: float
    deadline: float
    answer: Future[Served]


class Simulation:
    """Mutable state: the calls that robots wait for, when the others send next, and what came of it."""

    def __init__(
        self, crowd: Crowd, model: Model = ONE_PASS, capacity: int = 16, cost: PassCost | None = None, seed: int = 0
    ) -> None:
        self._crowd = crowd
        self._engine = _Backbone(model, capacity, seed)
        self._drafts = model.passes != _UNDRAFTED
        self._worker = GpuWorker(lambda: self._engine, _QUEUE_LIMIT, lambda: self._engine.now, cost)
        self._calls: dict[int, _Call] = {}
        self._due = {robot: robot / crowd.robots / crowd.hz for robot in range(crowd.robots)}
        self._frames = 0
        self._latencies_ms: list[list[float]] = [[] for _ in range(crowd.robots)]

    def run(self) -> Seen:
        engine = self._engine
        while engine.now < self._crowd.seconds:
            self._receive()
            self._send()
            if self._worker.load().queued or any(frame.deadline > engine.now for frame in engine.left):
                self._worker.turn(engine)
            else:
                moments = [*self._due.values(), *(call.deadline for call in self._calls.values())]
                engine.now = max(engine.now, min(moments))
        answered = tuple(map(len, self._latencies_ms))
        latencies = tuple(sorted(each for robot in self._latencies_ms for each in robot))
        return Seen(answered, latencies, 1 - sum(answered) / engine.admitted if engine.admitted else 0.0)

    def _receive(self) -> None:
        """End the calls that are answered, refused or over; the next frame comes at the robot's own pace."""
        now, hz = self._engine.now, self._crowd.hz
        for robot, call in list(self._calls.items()):
            answered = call.answer.done() and call.answer.exception() is None and now < call.deadline
            if answered:
                self._latencies_ms[robot].append((now - call.sent) * 1e3)
            if answered or call.answer.done() or call.deadline <= now:
                call.answer.cancel()
                del self._calls[robot]
                offset = robot / self._crowd.robots / hz
                self._due[robot] = offset + (math.floor((now - offset) * hz + 1e-9) + 1) / hz

    def _send(self) -> None:
        now = self._engine.now
        for robot, due in [(robot, due) for robot, due in self._due.items() if due <= now]:
            self._frames += 1
            deadline = due + self._crowd.deadline_s
            draft = (0,) * _DIMS if self._drafts else ()
            frame = Frame(robot, self._frames, (0,), _NO_PATCHES, _DIMS, deadline, draft)
            try:
                answer = self._worker.submit(frame)
            except SplitVLAError:
                self._due[robot] = due + 1 / self._crowd.hz
                continue
            del self._due[robot]
            self._calls[robot] = _Call(due, deadline, answer)


def order_rows(seed: int) -> Iterator[Sequence[str]]:
    """Every frame one pass, a prefill a frame: sharing gains nothing, so that the order alone counts."""
    for deadline_s in (0.15, 0.3, 1.0):
        for sigma in (0.3, 0.6):
            for robots in (4, 8, 16, 32):
                crowd, model = Crowd(robots, deadline_s), Model(ONE_PASS_S, sigma=sigma)
                plain, ours = (Simulation(crowd, model, cost=cost, seed=seed).run() for cost in (Unhurried(), None))
                cells = [f"{deadline_s * 1e3:.0f}", f"{sigma:g}", str(robots), f"{robots * crowd.hz:.0f}"]
                for seen in (plain, ours):
                    cells += [f"{sum(seen.answered) / crowd.seconds:.1f}", f"{seen.wasted:.0%}"]
                yield [*cells, f"{ours.fairness:.2f}"]


def sharing_rows(seed: int) -> Iterator[Sequence[str]]:
    for name, model in MODELS.items():
        for robots in (1, 4, 8, 16, 32):
            crowd = Crowd(robots, 0.3)
            cells = [name, str(robots), f"{robots * crowd.hz:.0f}"]
            for capacity in (1, 16):
                seen = Simulation(crowd, model, capacity, seed=seed).run()
                p50, p99 = (seen.latencies_ms[int(share * (len(seen.latencies_ms) - 1))] for share in (0.5, 0.99))
                cells += [f"{sum(seen.answered) / crowd.seconds:.1f}", f"{p50:.0f} / {p99:.0f}"]
            yield [*cells, f"{seen.fairness:.2f}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    command = "python -m benchmarks.overload"
    title = f"Overload: answers a second of a server that can give {1 / ONE_PASS_S:.0f}, on simulated time"
    print(heading(title, command, packages=("splitvla",), seed=seed, n=1))
    header = ("deadline ms", "spread of a pass", "robots", "asked a second", "earliest deadline first", "wasted")
    print(table((*header, "the queue's order", "wasted", "fairness"), list(order_rows(seed))))
    title = "Sharing passes: answers a second and their p50 / p99 ms, deadline 300 ms, on simulated time"
    print(heading(title, command, packages=("splitvla",), seed=seed, n=1))
    columns = ("model", "robots", "asked a second", "one at a time", "p50 / p99", "up to 16 share", "p50 / p99")
    print(table((*columns, "fairness"), list(sharing_rows(seed))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
