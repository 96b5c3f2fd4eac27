"""A fallback machine on a simulated clock, for tests: say what happens, get the command."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from splitvla_edge.fallback import (
    Asked,
    Chunk,
    Command,
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

DT = 0.2
SPACE = ActionSpace(Kind.DELTA_EE, (-1.0, -1.0, 0.0), (1.0, 1.0, 1.0), gripper=2, gripper_start=0.5)
ABSOLUTE = ActionSpace(Kind.ABSOLUTE, (-2.0,) * 2, (2.0,) * 2, max_speed=(1.0, 1.0))
ACTION = (0.1, -0.2, 1.0)
ROWS = ((0.1, 0.0, 1.0), (0.2, 0.0, 1.0), (0.3, 0.0, 1.0))
LADDER = (2_097_152, 1_049_088, 557_056)


class Bench:
    """A machine and a clock. `step` moves the clock and ticks with a fresh camera and a ready robot."""

    def __init__(
        self,
        space: ActionSpace = SPACE,
        *,
        accept_clipped: bool = False,
        chunk_length: int = 1,
        dt: float = DT,
        mode: Mode = Mode.NORMAL,
        settings: FallbackSettings | None = None,
    ) -> None:
        self.machine = FallbackMachine(
            settings or FallbackSettings(), space, dt, accept_clipped=accept_clipped, mode=mode
        )
        self.dt = dt
        self.now = 100.0
        self.sequence = self.local_number = 0
        self.calm = TickInputs(ready=Ready(space.dims, chunk_length, "f" * 16, LADDER), position=(0.0,) * space.dims)

    def step(self, *replies: Reply, dt: float | None = None, **changes: Any) -> Command:
        self.now += self.dt if dt is None else dt
        inputs = self.calm._replace(replies=replies, frame_at=self.now - 0.01)
        return self.machine.tick(self.now, inputs._replace(**changes))

    def reply(self, age: float = 0.1, *, after: float | None = None, **changes: Any) -> Chunk:
        """A chunk that will have this age when the clock is `after` further, a tick if not said."""
        self.sequence += 1
        arrives = self.now + (self.dt if after is None else after)
        chunk = Chunk(self.sequence, self.machine.epoch, arrives - age, arrives - 0.01, (ACTION,))
        return replace(chunk, **changes)

    def asked(self, within: float, *, after: float | None = None, rung: int = 0) -> Asked:
        self.sequence += 1
        arrives = self.now + (self.dt if after is None else after)
        return Asked(self.sequence, self.machine.epoch, arrives - 0.01, arrives + within, rung)

    def local(self, age: float = 0.05, **changes: Any) -> LocalChunk:
        """An answer of a licensed local policy, of this age on the next tick."""
        self.local_number += 1
        return replace(LocalChunk(self.local_number, self.now + self.dt - age, (ACTION,), 1.0, 100), **changes)

    def miss(self, outcome: Outcome = Outcome.MISSED) -> Miss:
        """Of the call in flight; without one, of a call that began and ended between two ticks."""
        if self.machine.account.flight is None:
            self.sequence += 1
        return Miss(self.sequence, outcome)

    def nominal(self) -> Bench:
        assert self.step(self.reply()).state is State.NOMINAL
        return self

    def held(self) -> Bench:
        self.nominal()
        assert self.step(self.miss()).state is State.HOLD
        return self


def still(command: Command, gripper: float) -> bool:
    return not command.motion and command.values == (0.0, 0.0, gripper)
