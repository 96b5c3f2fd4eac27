"""A Perception on a simulated clock, for tests: a policy, a camera and a local policy that do what they are told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from splitvla_edge.daemon.channel import Channel, Message
from splitvla_edge.daemon.perception import Perception
from splitvla_edge.fallback import Hint, LocalChunk, Ready
from splitvla_edge.robots.base import Frame
from splitvla_shared.errors import RobotError, SplitVLAError
from splitvla_shared.nouns import ActionChunk, Observation, Scheme, ServerHints, StageTimes
from splitvla_shared.rungs import Rung, plain_ladder

READY = Ready(2, 1, "0123456789abcdef")
HINTS = ServerHints(queued=2, busy=0.5)
HINT = Hint(epoch=4, sequence_floor=10, max_age_s=0.3, deadline_min_s=0.1, deadline_max_s=0.5, enabled=True)


class FakePolicy:
    """`handshakes` and `acts` are what the next calls raise; None or nothing left means success."""

    def __init__(self) -> None:
        self.handshakes: list[SplitVLAError | None] = []
        self.acts: list[SplitVLAError | None] = []
        self.rungs = plain_ladder(Scheme.BF16, (4, 8))
        self.seen: list[tuple[Observation, float]] = []
        self.sent: list[Rung] = []
        self.patience: list[float] = []
        self.when_told: Callable[[], object] = lambda: None

    def handshake(self, timeout_s: float) -> None:
        self.patience.append(timeout_s)
        self._raise(self.handshakes)

    def act(self, observation: Observation, *, deadline_s: float, rung: Rung) -> ActionChunk:
        self.seen.append((observation, deadline_s))
        self.sent.append(rung)
        self._raise(self.acts)
        return ActionChunk(
            observation.step, np.array([[0.1, 1.0]]), "cloud", (7, 8), (1,), StageTimes(total_ms=5.0), 64, HINTS
        )

    def tell_answer(self) -> None:
        self.when_told()

    def _raise(self, errors: list[SplitVLAError | None]) -> None:
        error = errors.pop(0) if errors else None
        if error is not None:
            raise error


class FakeCamera:
    def __init__(self) -> None:
        self.frame: Frame | None = None
        self.ended = False
        self.error: RobotError | None = None
        self.newest_error: Exception | None = None

    def newest(self, now: float) -> tuple[float, int] | None:
        if self.newest_error is not None:
            raise self.newest_error
        return None if self.frame is None else (self.frame.captured_at, self.frame.index)

    def latest(self, now: float) -> Frame | None:
        if self.error is not None:
            raise self.error
        return self.frame

    def exhausted(self, now: float) -> bool:
        return self.ended

    def close(self) -> None: ...


class FakeLocal:
    """Answers every frame once."""

    def __init__(self) -> None:
        self.last = -1

    def step(self, latest: Callable[[float], Frame | None]) -> LocalChunk | None:
        frame = latest(20.0)
        if frame is None or frame.index == self.last:
            return None
        self.last = frame.index
        return LocalChunk(frame.index + 1, frame.captured_at, ((0.2, 0.0),), 0.9, 30)


class Rig:
    def __init__(self, *, server_needed: bool = True) -> None:
        self.control, theirs = Channel.pair()
        self.peer = Channel(theirs)
        self.now = 20.0
        self.paused: list[float] = []
        self.policy, self.camera = FakePolicy(), FakeCamera()
        self.perception = Perception(
            self.policy,
            READY,
            self.camera,
            self.peer,
            "pick up the can",
            local=FakeLocal(),
            server_needed=server_needed,
            clock=lambda: self.now,
            pause=self.paused.append,
        )

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()
        self.peer.close()

    def agreed(self) -> Rig:
        self.control.send(HINT)
        self.perception.listen()
        self.perception.step()
        assert self.control.receive() == [READY]
        return self

    def show(self, index: int, age: float = 0.05) -> None:
        self.camera.frame = Frame(np.zeros((4, 4, 3), np.uint8), self.now - age, index)

    def step(self) -> list[Message]:
        self.perception.step()
        return self.control.receive()
