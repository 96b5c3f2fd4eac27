"""Warming up: what runs before the first robot, and what admission learns from it."""

from __future__ import annotations

import pytest

from splitvla_cloud.engine.interface import Frame, Outcome, Tokens
from splitvla_cloud.engine.warm_up import warm_up
from splitvla_cloud.worker import GpuWorker
from splitvla_shared.errors import ServerFault
from tests.cloud_fakes import WAIT_S, FakeBackbone


class Machine:
    """An engine on a clock of its own: a pass takes `a_pass_s` and `a_frame_s` for each new frame, the first double."""

    def __init__(self, a_pass_s: float, a_frame_s: float, error: Exception | None = None) -> None:
        self.now = 0.0
        self._a_pass_s, self._a_frame_s, self._error = a_pass_s, a_frame_s, error
        self._fresh: list[Frame] = []
        self._decoded: list[Frame] = []
        self.rounds: list[int] = []

    def admit(self, frame: Frame) -> None:
        assert frame.patches.shape == (3, 8)
        self._fresh.append(frame)

    def step(self) -> list[Outcome]:
        ended = [Outcome(frame, self._error or Tokens((0,) * frame.dims, 0.0, 0.0)) for frame in self._decoded]
        self._decoded, self._fresh = self._fresh, []
        if self._decoded:
            self.rounds.append(len(self._decoded))
            first = 2 if self.rounds.count(len(self._decoded)) == 1 else 1
            self.now += first * (self._a_pass_s + self._a_frame_s * len(self._decoded))
        return ended

    def warm_up(self, capacity: int) -> dict[int, float]:
        return warm_up(self.admit, self.step, patches=(3, 8), dims=7, capacity=capacity, clock=lambda: self.now)


def test_the_quickest_pass_of_each_number_of_robots_counts() -> None:
    machine = Machine(2**-7, 2**-10)
    assert machine.warm_up(6) == {robots: 2**-7 + robots * 2**-10 for robots in (1, 2, 4, 6)}
    assert machine.rounds == [1, 1, 1, 2, 2, 2, 4, 4, 4, 6, 6, 6]
    assert Machine(0.5, 0.0625).warm_up(1) == {1: 0.5625}, "the second run of one robot"


def test_a_slow_machine_is_not_kept_from_serving_one_robot_by_trying_many() -> None:
    machine = Machine(0.5, 0.25)
    assert machine.warm_up(8) == {1: 0.75}
    assert machine.rounds == [1, 1]


def test_what_ends_a_frame_is_raised() -> None:
    with pytest.raises(ServerFault, match="broken"):
        Machine(0.1, 0.1, ServerFault("broken")).warm_up(2)


def test_admission_starts_from_what_the_warm_up_measured() -> None:
    backbone = FakeBackbone()
    backbone.pass_costs = {1: 0.5, 4: 1.25}
    worker = GpuWorker(lambda: backbone, 4, clock=lambda: 100.0)
    worker.start()
    worker.ready.result(WAIT_S)
    assert [worker._cost.of(frames) for frames in (0, 1, 3, 4)] == [0.0, 0.5, 0.5, 1.25]
    assert worker._cost.floor(100.0) == 0.5
    worker.close()
