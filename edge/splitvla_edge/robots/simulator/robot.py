"""The simulated robot as the control process sees it: small messages to a world that lives in a process of its own."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from splitvla_edge.daemon.episodes import Episode, Outcome
from splitvla_edge.daemon.supervisor import Supervisor, start_subcommand
from splitvla_edge.fallback import Command
from splitvla_edge.robots.action_space import ActionSpace
from splitvla_edge.robots.base import RobotState
from splitvla_edge.robots.simulator.memory import FrameMemory
from splitvla_edge.robots.simulator.messages import Act, Message, SimulatorChannel, Status
from splitvla_edge.robots.simulator.world import SimulatorSettings
from splitvla_shared.errors import ConfigError, RobotError

PICTURES = "frames"
_OPEN_S = 60.0  # loading a physics engine takes seconds
_LOOK_S = 0.02
_SILENT_S, _SILENT_PERIODS = 1.0, 5.0


class Peer(Protocol):
    """The simulator process as this robot sees it. No call waits or raises, but for `end`."""

    @property
    def generation(self) -> int:
        """Rises with every start of the process."""

    @property
    def up(self) -> bool: ...

    def receive(self) -> list[Message]: ...

    def send(self, message: Message) -> None: ...

    def end(self) -> None: ...


class SimulatedRobot:
    """Owned by the control process.

    Mutable state: which episode is running, when the simulator last said so, and the episodes that have ended.
    """

    def __init__(
        self,
        space: ActionSpace,
        settings: SimulatorSettings,
        dt_s: float,
        peer: Peer,
        memory: FrameMemory,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._space, self._first_seed = space, settings.seed
        self._peer, self._memory, self._clock = peer, memory, clock
        self._silent_s = max(_SILENT_S, _SILENT_PERIODS * dt_s)
        self._generation = peer.generation
        self._running = Status(0, 0)
        self._ended: list[Episode] = []
        self._heard_at: float | None = None
        self._tick = 0

    @classmethod
    def open(
        cls, name: str, space: ActionSpace, settings: SimulatorSettings, dt_s: float, run_dir: Path
    ) -> SimulatedRobot:
        """Start the process for the world of that name, and wait until it stands.

        Raises ConfigError when the world can't be had on this machine, RobotError when it fails.
        """
        memory = FrameMemory.create()
        told = {"robot": name, "memory": str(memory.path), "dt_s": dt_s}
        told |= {f"simulator.{each}": getattr(settings, each) for each in settings.__slots__}
        if settings.record:
            told["pictures"] = str(run_dir / PICTURES)
        supervisor: Supervisor[Message] = Supervisor(
            "the simulator",
            SimulatorChannel.pair,
            lambda fd: start_subcommand("simulate", json.dumps(told | {"first_episode": robot.next_episode}), fd),
        )
        robot = cls(space, settings, dt_s, supervisor, memory)
        supervisor.begin()
        with contextlib.ExitStack() as on_error:
            on_error.callback(robot.close)
            robot._wait_until_it_stands(supervisor)
            on_error.pop_all()
        return robot

    @property
    def action_space(self) -> ActionSpace:
        return self._space

    @property
    def camera_memory(self) -> Path:
        return self._memory.path

    @property
    def episodes(self) -> tuple[Episode, ...]:
        return tuple(self._ended)

    @property
    def next_episode(self) -> int:
        """Where a simulator that is started now begins: an episode in which the arm has moved can't be taken up."""
        return self._running.episode + (self._running.step > 0)

    def read_state(self) -> RobotState:
        """Not ready for the tick that sees a new episode, so that no action of the old one's pictures is executed.

        Raises RobotError while the simulator is dead or silent.
        """
        now = self._clock()
        began = self._take(now)
        if not self._peer.up:
            raise RobotError("the simulator process is gone; it is started again")
        if self._heard_at is None:
            raise RobotError("the simulator was started again and does not stand yet")
        if now - self._heard_at > self._silent_s:
            raise RobotError(f"the simulator has said nothing for {now - self._heard_at:.1f} s")
        return RobotState(ready=not began, position=self._running.position or None)

    def apply(self, command: Command) -> None:
        self._tick = command.tick
        self._peer.send(Act(command.tick, self._running.episode, command.motion, command.values))

    def stop(self) -> None:
        """The world holds as long as nothing else is said, as it does when the control process is gone."""
        still = self._space.hold(None, None, self._space.gripper_start, 0.0)
        self._peer.send(Act(self._tick, self._running.episode, False, still))

    def close(self) -> None:
        self._take(self._clock())
        self._peer.end()
        self._memory.close()

    def _take(self, now: float) -> bool:
        """Take in what the simulator said; True when another episode is running than before."""
        before = self._running.episode
        if self._peer.generation != self._generation:
            self._generation, self._heard_at = self._peer.generation, None
            if self._running.step:
                self._ended.append(Episode(before, self._first_seed + before, Outcome.LOST, self._running.step))
            self._running = Status(self.next_episode, 0)
        for message in self._peer.receive():
            if isinstance(message, Episode):
                self._ended.append(message)
            elif isinstance(message, Status):
                self._running, self._heard_at = message, now
        return self._running.episode != before

    def _wait_until_it_stands(self, supervisor: Supervisor[Message]) -> None:
        give_up = self._clock() + _OPEN_S
        while self._heard_at is None:
            self._take(self._clock())
            if supervisor.fatal is not None:
                raise ConfigError("the simulator can't be started; its own message, above, says why")
            if supervisor.restarts or self._clock() > give_up:
                raise RobotError(f"the simulator failed or did not stand within {_OPEN_S:.0f} s; see above")
            time.sleep(_LOOK_S)
