"""More robots than a server can answer: how many answers are left, on simulated time, with the server's own queue.

    python -m benchmarks.overload

A pass takes what a lognormal draw says, whatever the deadline of the frames in it; what misses its deadline is work for
nothing. The table holds the order that the queue has against the plain earliest deadline first.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report import heading, table
from splitvla_cloud.admission import PassCost
from splitvla_cloud.scheduler import FrameQueue, Ticket
from splitvla_shared.errors import LinkError

PASS_S = 0.066
_QUEUE_LIMIT, _ROOM = 32, 8
_ROBOTS, _DEADLINES_S, _SIGMAS = (4, 8, 16, 32), (0.15, 0.3, 1.0), (0.3, 0.6)


class Unhurried(PassCost):
    """Knows no usual duration, which leaves the plain earliest deadline first."""

    def usual(self, now: float) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class Crowd:
    """Robots at `hz` with one call in flight each, which is given up at its deadline; the next frame is then sent.

    sigma: of the logarithm of a pass's duration. A pass of several frames takes as long as they would one by one.
    """

    robots: int
    deadline_s: float
    sigma: float
    hz: float = 5.0
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """answered: of each robot. wasted: share of the GPU's time that went to frames which missed their deadline."""

    answered: tuple[int, ...]
    wasted: float

    @property
    def fairness(self) -> float:
        """Jain's index."""
        squares = sum(count * count for count in self.answered)
        return sum(self.answered) ** 2 / (len(self.answered) * squares) if squares else 0.0


class Simulation:
    """Mutable state: the clock, the queue, what each robot waits for or when it may send, and the running pass."""

    def __init__(self, crowd: Crowd, cost: PassCost, seed: int = 0) -> None:
        self._crowd, self._cost, self._random = crowd, cost, random.Random(seed)
        self._queue: FrameQueue[None] = FrameQueue(_QUEUE_LIMIT)
        self._waits: dict[int, Ticket[None]] = {}
        self._due = {robot: robot / crowd.robots / crowd.hz for robot in range(crowd.robots)}
        self._frames = 0
        self._answered = [0] * crowd.robots
        self._pass: tuple[float, float, list[Ticket[None]]] | None = None
        self._worked_s = self._wasted_s = 0.0

    def run(self) -> Outcome:
        now = 0.0
        while now < self._crowd.seconds:
            self._end_pass(now)
            self._give_up(now)
            self._send(now)
            self._begin_pass(now)
            now = max(now, self._next(now))
        return Outcome(tuple(self._answered), self._wasted_s / self._worked_s if self._worked_s else 0.0)

    def _next(self, now: float) -> float:
        moments = [*self._due.values(), *(ticket.deadline for ticket in self._waits.values())]
        return min([*moments, self._pass[1]] if self._pass else moments)

    def _free(self, robot: int, now: float) -> None:
        """The robot's call is over: its next frame comes at its own pace."""
        self._waits.pop(robot, None)
        offset, hz = robot / self._crowd.robots / self._crowd.hz, self._crowd.hz
        self._due[robot] = offset + (math.floor((now - offset) * hz + 1e-9) + 1) / hz

    def _send(self, now: float) -> None:
        for robot in [robot for robot, due in self._due.items() if due <= now]:
            self._frames += 1
            ticket: Ticket[None] = Ticket(robot, self._frames, now + self._crowd.deadline_s, now, None)
            del self._due[robot]
            self._waits[robot] = ticket
            try:
                dropped = self._queue.offer(ticket, now)
            except LinkError:
                self._free(robot, now)
                continue
            for leaving in dropped:
                self._free(leaving.ticket.session, now)

    def _give_up(self, now: float) -> None:
        for robot, ticket in list(self._waits.items()):
            if ticket.deadline <= now:
                self._queue.cancel(ticket)
                self._free(robot, now)

    def _begin_pass(self, now: float) -> None:
        if self._pass is not None or not len(self._queue):
            return
        taken, dropped = self._queue.take(now, _ROOM, self._cost)
        for leaving in dropped:
            self._free(leaving.ticket.session, now)
        if taken:
            sigma = self._crowd.sigma
            seconds = PASS_S * len(taken) * math.exp(self._random.gauss(0.0, sigma) - sigma**2 / 2)
            self._pass = (now, now + seconds, taken)

    def _end_pass(self, now: float) -> None:
        if self._pass is None or self._pass[1] > now:
            return
        began, ended, taken = self._pass
        self._pass = None
        self._cost.learn(len(taken), ended - began, ended)
        for ticket in taken:
            share = (ended - began) / len(taken)
            self._worked_s += share
            if self._waits.get(ticket.session) is ticket and ticket.deadline > ended:
                self._answered[ticket.session] += 1
                self._free(ticket.session, ended)
            else:
                self._wasted_s += share


def rows(seed: int) -> list[Sequence[str]]:
    found: list[Sequence[str]] = []
    for deadline_s in _DEADLINES_S:
        for sigma in _SIGMAS:
            for robots in _ROBOTS:
                crowd = Crowd(robots, deadline_s, sigma)
                plain, ours = (Simulation(crowd, cost, seed).run() for cost in (Unhurried(), PassCost()))
                cells = [f"{deadline_s * 1e3:.0f}", f"{sigma:g}", str(robots), f"{robots * crowd.hz:.0f}"]
                for outcome in (plain, ours):
                    cells += [f"{sum(outcome.answered) / crowd.seconds:.1f}", f"{outcome.wasted:.0%}"]
                found.append([*cells, f"{ours.fairness:.2f}"])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    title = f"Overload: answers a second of a server that can give {1 / PASS_S:.0f}, on simulated time"
    print(heading(title, "python -m benchmarks.overload", packages=("splitvla",), seed=seed, n=1))
    header = ("deadline ms", "spread of a pass", "robots", "asked a second", "earliest deadline first", "wasted")
    print(table((*header, "the queue's order", "wasted", "fairness"), rows(seed)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
