"""What holds for every history: the invariants of the fallback machine, by Hypothesis, on a simulated clock."""

from __future__ import annotations

import math
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from splitvla_edge.fallback import (
    Asked,
    Chunk,
    FallbackSettings,
    LocalChunk,
    Miss,
    Mode,
    Outcome,
    Ready,
    Reply,
    State,
    TickInputs,
)
from splitvla_edge.fallback.machine import FallbackMachine
from splitvla_edge.robots.action_space import ActionSpace, Kind
from splitvla_shared.nouns import StageTimes
from tests.fallback_invariants import Watch

DT = 0.05
LADDER = (2_000_000, 1_000_000, 50_000)
SPACES = tuple(
    ActionSpace(kind, (-0.1, -0.1, 0.0), (0.1, 0.1, 1.0), 2, 0.5, max_speed=(1.0, 1.0, 1.0)) for kind in Kind
)
HISTORIES = int(os.environ.get("FALLBACK_HISTORIES", "2000"))  # CI takes more, the mutation check fewer
_NAN, _INF = math.nan, math.inf
_ROWS = ((0.05, -0.02, 1.0), (0.3, -0.3, 0.2), (_NAN, 0.0, 0.0), (0.0, _INF, 0.0), (1e300, 0.0, -1e300), (0.1, 0.2))
_STEPS = st.integers(1, 12)


class Histories(RuleBasedStateMachine):
    """Anything that perception, the robot and the operator may do, in any order; `Watch` judges every tick."""

    @initialize(space=st.sampled_from(SPACES), length=st.sampled_from((1, 1, 4, 8)), forced=st.integers(0, 7))
    def begin(self, space: ActionSpace, length: int, forced: int) -> None:
        mode = Mode.FORCED_LOCAL if forced == 7 else Mode.NORMAL
        self.watch = Watch(FallbackMachine(FallbackSettings(), space, DT, mode=mode, seed=3))
        self.again = FallbackMachine(FallbackSettings(), space, DT, mode=mode, seed=3)
        self.now, self.sequence, self.number, self.length = 1000.0, 0, 0, length
        self.position = (0.0, 0.0, 0.5)
        self.licensed = False
        self.ready = Ready(3, length, "f", LADDER)

    def step(self, *replies: Reply, period: float = DT, **changes: Any) -> None:
        self.now += period
        local = None
        if self.licensed:
            self.number += 1
            local = LocalChunk(self.number, self.now - 0.03, ((0.05, 0.02, 1.0),), 0.9, 50)
        inputs = TickInputs(replies, local, self.now - 0.01, self.ready, position=self.position)
        self.watch.tick(self.now, inputs._replace(**changes))

    def chunk(self, age: float = 0.04, row: int = 0, rung: int = 0, step: int = 1, epoch: int = 0) -> Chunk:
        """A chunk that will have this age on the next tick."""
        self.sequence += max(0, step)
        at = self.now + DT
        stages = StageTimes(network_ms=max(0.0, age * 800), prefill_ms=age * 100)
        return Chunk(
            max(0, self.sequence + min(0, step)),
            self.watch.machine.epoch + epoch,
            at - age,
            at - 0.001,
            (_ROWS[row],) * self.length,
            0,
            stages,
            LADDER[rung],
            rung,
        )

    @rule(ticks=_STEPS, age=st.sampled_from((0.02, 0.04, 0.2, 0.28)))
    def answers_come(self, ticks: int, age: float) -> None:
        for _ in range(ticks):
            rung = self.watch.machine.hint().rung
            chunk = self.chunk(age, rung=rung)
            asked = Asked(chunk.sequence, chunk.epoch, chunk.captured_at, chunk.finished_at + 0.1, rung)
            self.step(asked, chunk)

    @rule(ticks=_STEPS, period=st.sampled_from((DT, DT, 0.4)))
    def nothing_comes(self, ticks: int, period: float) -> None:
        for _ in range(ticks):
            self.step(period=period)

    @rule(ticks=st.integers(1, 4), outcome=st.sampled_from(list(Outcome)[1:]), together=st.booleans())
    def calls_fail(self, ticks: int, outcome: Outcome, together: bool) -> None:
        for _ in range(ticks):
            replies: tuple[Reply, ...] = (self.chunk(),) if together else ()
            self.sequence += 1
            asked = Asked(self.sequence, self.watch.machine.epoch, self.now, self.now + 0.2)
            self.step(*replies, asked, Miss(self.sequence, outcome))

    @rule(deadline=st.sampled_from((-0.1, 0.0, 0.1, 0.6, 1e9)), ticks=_STEPS)
    def a_call_hangs(self, deadline: float, ticks: int) -> None:
        self.sequence += 1
        self.step(Asked(self.sequence, self.watch.machine.epoch, self.now, self.now + deadline))
        for _ in range(ticks):
            self.step()

    @rule(
        age=st.sampled_from((-0.1, 0.0, 0.05, 0.09, 0.11, 0.31, 0.55, 1.1)),
        row=st.integers(0, len(_ROWS) - 1),
        step=st.integers(-2, 3),
        epoch=st.sampled_from((0, 0, 0, -1, 1)),
        rung=st.integers(0, 2),
    )
    def any_answer(self, age: float, row: int, step: int, epoch: int, rung: int) -> None:
        self.step(self.chunk(age, row, rung, step, epoch), self.chunk(age, row, rung, step - 1, epoch))

    @rule(age=st.sampled_from((None, -0.1, 0.49, 0.51, 3.0)), ticks=st.integers(1, 3))
    def the_camera_is_odd(self, age: float | None, ticks: int) -> None:
        for _ in range(ticks):
            self.step(self.chunk(), frame_at=None if age is None else self.now + DT - age)

    @rule(
        change=st.sampled_from(
            (
                {"estop": True},
                {"reset": True},
                {"reset": True, "estop": True},
                {"robot_ready": False},
                {"ready": None},
                {"enabled": False},
                {"contract": "embed_dim"},
                {"lateness_s": 0.2},
                {"reset": True},
                {"position": None},
                {"gripper": 0.2},
                {"gripper": _NAN, "robot_ready": False},
            )
        ),
        ticks=st.integers(1, 3),
    )
    def something_happens(self, change: dict[str, Any], ticks: int) -> None:
        for _ in range(ticks):
            self.step(self.chunk(), **change)

    @rule(by=st.sampled_from((0.004, 0.006, 0.09, 0.5)), ticks=st.integers(0, 3), taken=st.booleans())
    def the_robot_is_moved(self, by: float, ticks: int, taken: bool) -> None:
        for _ in range(ticks):
            self.position = (self.position[0] + by, *self.position[1:])
            self.step(self.chunk(), robot_ready=not taken)

    @rule()
    def the_robot_is_moved_back(self) -> None:
        self.position = (0.0, 0.0, 0.5)

    @rule(licensed=st.booleans(), ticks=st.integers(8, 14))
    def the_local_policy_comes_or_goes(self, licensed: bool, ticks: int) -> None:
        self.licensed = licensed
        for _ in range(ticks):
            self.step()

    def teardown(self) -> None:
        if hasattr(self, "watch"):
            self.watch.replay(self.again)


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=HISTORIES,
    stateful_step_count=7,
    suppress_health_check=list(HealthCheck),
    database=None,
)


def test_an_hour_of_answers_leaves_no_trace_in_memory() -> None:
    """15: nothing in the machine, nor in what it owns, grows with time."""
    machine = FallbackMachine(FallbackSettings(), SPACES[0], DT)
    inputs = TickInputs(ready=Ready(3, 1, "f", LADDER))
    for number in range(1, 5000):
        now = number * DT
        chunk = Chunk(number, 1, now - 0.01, now, ((0.05, 0.0, 1.0),), rung=number % 3, wire_bytes=number)
        machine.tick(now, inputs._replace(replies=(chunk,), frame_at=now))
    assert machine.state is not State.SAFE_STOP
    parts = (machine, machine.account, machine.chooser, machine.chooser.model, machine.local, machine.stillness)
    sized = [value for part in parts for value in vars(part).values() if hasattr(value, "__len__")]
    assert max(len(value) for value in sized) <= 256
