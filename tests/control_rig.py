"""A control loop on a simulated clock, with a robot and a perception process of a few lines."""

from __future__ import annotations

from collections.abc import Callable

from splitvla_edge.daemon.channel import FrameSeen, Message
from splitvla_edge.daemon.control import ControlLoop
from splitvla_edge.daemon.record import StepRecord
from splitvla_edge.fallback import Chunk, Command, FallbackSettings, Ready
from splitvla_edge.fallback.machine import FallbackMachine
from splitvla_edge.robots.action_space import ActionSpace, Kind
from splitvla_edge.robots.base import RobotState
from splitvla_shared.errors import RobotError

DT = 0.1
SPACE = ActionSpace(Kind.DELTA_EE, (-1.0, 0.0), (1.0, 1.0), gripper=1)
READY = Ready(2, 1, "f")


class FakePeer:
    def __init__(self) -> None:
        self.generation, self.up = 1, True
        self.inbox: list[Message] = []
        self.sent: list[Message] = []
        self.replaced: list[str] = []

    def receive(self) -> list[Message]:
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def replace(self, why: str) -> None:
        self.replaced.append(why)


class FakeRobot:
    """Keeps the order of the calls; `fails` names the calls that raise."""

    action_space = SPACE

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.commands: list[Command] = []
        self.state = RobotState()
        self.fails: set[str] = set()
        self.takes_time: Callable[[str], None] = lambda name: None

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.takes_time(name)
        if name in self.fails:
            raise RobotError(f"{name}: the arm's cable is out")

    def read_state(self) -> RobotState:
        self._called("read_state")
        return self.state

    def apply(self, command: Command) -> None:
        self.commands.append(command)
        self._called("apply")

    def stop(self) -> None:
        self._called("stop")

    def close(self) -> None: ...


class Rig:
    """A loop on a simulated clock, with a fake robot and a fake peer."""

    def __init__(self) -> None:
        self.now = 50.0
        self.peer, self.robot = FakePeer(), FakeRobot()
        self.records: list[StepRecord] = []
        self.machine = FallbackMachine(FallbackSettings(), SPACE, DT)
        self.slept: list[float] = []
        self.loop = ControlLoop(
            self.machine,
            self.robot,
            self.peer,
            self.records.append,
            hang_s=10.0,
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def frame(self) -> list[Message]:
        return [READY, FrameSeen(self.now - 0.01, 1)]

    def chunk(self, sequence: int) -> Chunk:
        return Chunk(sequence, self.machine.epoch, self.now - 0.05, self.now, ((0.5, 1.0),), wire_bytes=99)

    def tick(self, *messages: Message) -> Command:
        self.now += DT
        self.peer.inbox += [*self.frame(), *messages]
        return self.loop.tick(self.now)
