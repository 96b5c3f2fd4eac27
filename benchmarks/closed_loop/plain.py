"""The plain client, what is in use today: look, ask, wait for the answer, move, look again; on a real clock.

It is the loop of OpenVLA's and openpi's examples: one call after the other, no deadline, and what comes is executed,
whatever its age. It is driven kindly: the arm stands still while it waits, a lost call is made again.

Rules of this file: time passes in the world as it does on the clock. Since the arm holds until the answer is there,
and nobody looks at the world before, the periods that passed are stepped when it has come; that is the same world.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.closed_loop.actors import Actor
from splitvla_edge.daemon.episodes import Episode, Outcome
from splitvla_edge.robots.action_space import ActionSpace
from splitvla_edge.robots.simulator.world import World
from splitvla_shared.errors import LinkError
from splitvla_shared.nouns import ActionChunk, Observation

_PAUSE_S = 0.1  # after a lost call


@dataclass(frozen=True, slots=True)
class Played:
    """An episode, and the oldest picture that an action came from when it was executed."""

    episode: Episode
    oldest_s: float


class PlainClient:
    """Plays episodes. limit: control periods that one may take from its first action on, as in the simulator."""

    def __init__(
        self,
        world: World,
        actor: Actor,
        space: ActionSpace,
        *,
        period_s: float,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._world, self._actor, self._space = world, actor, space
        self._period_s, self._limit, self._clock, self._pause = period_s, limit, clock, pause

    def play(self, task: str, seed: int, instruction: str, number: int = 0) -> Played:
        """One episode; chunks are executed to their end, an action a period. Raises what is no LinkError."""
        world, still = self._world, self._space.hold(None, None, self._space.gripper_start, 0.0)
        world.reset(task, seed)
        steps = motions = 0
        oldest_s = 0.0
        give_up = self._clock() + self._limit * self._period_s  # where no first action comes
        while not world.success and steps < self._limit:
            looked = self._clock()
            chunk = self._ask(world, instruction, motions, give_up)
            if chunk is None:
                break
            periods = max(1, math.ceil((self._clock() - looked) / self._period_s))
            waited = min(periods - 1, self._limit - steps) if motions else 0  # the world begins with the first action
            for _ in range(waited):
                world.step(still)
            steps += waited
            for late, action in enumerate(chunk.actions):
                if world.success or steps >= self._limit:
                    break
                due = looked + (periods + late) * self._period_s
                self._pause(max(0.0, due - self._clock()))
                action = self._space.bounded(tuple(action.tolist()))
                world.step(action)
                still = self._space.hold(action, None, self._gripper(action), 0.0)
                steps, motions, oldest_s = steps + 1, motions + 1, max(oldest_s, due - looked)
            give_up = math.inf
        outcome = Outcome.SUCCESS if world.success else Outcome.TIMEOUT
        return Played(Episode(number, seed, outcome, steps, motions), oldest_s)

    def _ask(self, world: World, instruction: str, step: int, give_up: float) -> ActionChunk | None:
        """The answer to what is seen now, asked again while calls are lost; None where time is over."""
        asked = Observation(step, (world.image(),), instruction, self._clock())
        give_up = min(give_up, asked.captured_at + self._limit * self._period_s)
        chunk = None
        while chunk is None and self._clock() < give_up:
            chunk = self._call(asked)
        return chunk

    def _call(self, asked: Observation) -> ActionChunk | None:
        try:
            return self._actor.act(asked)
        except LinkError:
            self._pause(_PAUSE_S)
            return None

    def _gripper(self, action: tuple[float, ...]) -> float:
        return self._space.gripper_start if self._space.gripper is None else action[self._space.gripper]
