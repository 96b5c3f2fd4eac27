"""The perception process: newest frame, policy, message; it may crash or hang, and the control process only holds.

Rules of this file: one call in flight; a frame is used once and the newest wins; every call is announced (Asked)
before it begins and ends in a Chunk or a Miss; a second thread reports the camera's frames while a call is running, and
a third one runs the local policy, where there is one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from splitvla_edge.daemon.channel import Channel, Contract, Exhausted, FrameSeen, Message
from splitvla_edge.daemon.datagrams import ChannelClosed, ChannelError
from splitvla_edge.fallback import Asked, Chunk, Hint, LocalChunk, Miss, Mode, Outcome, Ready, deadline_s
from splitvla_edge.handshakes import UNREACHABLE_PAUSE_S, Handshakes
from splitvla_edge.local.settings import LocalSettings, RecordingSettings
from splitvla_edge.outcomes import outcome_of
from splitvla_edge.robots.base import Camera, Frame
from splitvla_edge.robots.camera import CameraSettings
from splitvla_edge.robots.replay import ReplaySettings
from splitvla_edge.robots.simulator.world import SimulatorSettings
from splitvla_shared.encoders import FP32
from splitvla_shared.errors import ConfigError, LinkError, RobotError, SpecMismatch, SplitVLAError, Unreachable
from splitvla_shared.nouns import ActionChunk, Observation

if TYPE_CHECKING:  # it brings the codec along, and control imports this module for its settings
    from splitvla_shared.rungs import Rung

_IDLE_S = 0.004  # between looks for a new frame
_LISTEN_S = 0.02  # between reports of the camera's newest frame

STANDBY_OFF: Final = "off"
STANDBY_STARTED: Final = "started"
STANDBY_LOADED: Final = "loaded"


class Local(Protocol):
    """What perception asks of LocalRunner."""

    def step(self, latest: Callable[[float], Frame | None]) -> LocalChunk | None: ...


class Policy(Protocol):
    """What perception asks of EdgePolicy."""

    def handshake(self, timeout_s: float) -> object: ...

    @property
    def rungs(self) -> Sequence[Rung]: ...

    def act(self, observation: Observation, *, deadline_s: float, rung: Rung) -> ActionChunk: ...

    def tell_answer(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PerceptionSettings:
    """See RunSettings, of which this is the perception process's part.

    camera_memory: where a simulated robot's pictures are.
    """

    bundle: Path
    server: str
    instruction: str
    robot: str = "replay"
    unnorm_key: str | None = None
    scheme: str = "bf16"
    threads: int | None = None
    encoder: str = FP32
    provider: str = "auto"
    hedge_ms: float | None = None
    image_pipeline: str | None = None
    camera_transform: str = "none"
    action_transform: str = "none"
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    mode: str = Mode.NORMAL.value
    standby: str = STANDBY_STARTED
    camera_memory: Path | None = None
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    camera: CameraSettings = field(default_factory=CameraSettings)
    simulator: SimulatorSettings = field(default_factory=SimulatorSettings)
    local: LocalSettings = field(default_factory=LocalSettings)
    recording: RecordingSettings = field(default_factory=RecordingSettings)

    def to_json(self) -> str:
        """One object of dotted keys, as `load_config` takes them; what is None is left out."""
        return json.dumps(dict(_flat(self, "")))


def _flat(settings: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for each in dataclasses.fields(settings):
        value = getattr(settings, each.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{prefix}{each.name}.")
        elif value is not None:
            yield prefix + each.name, str(value) if isinstance(value, Path) else value


class Perception:
    """The loop. Owned by the perception process; `step` runs in its main thread, `listen` and `act_locally` in others.

    Mutable state: the newest hint and `closed` (written by the listener), and the last sequence and frame.
    """

    def __init__(
        self,
        policy: Policy,
        ready: Ready,
        camera: Camera,
        channel: Channel,
        instruction: str,
        *,
        local: Local | None = None,
        server_needed: bool = True,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        """local: the local policy. server_needed: False where only that one is to act, and no server need be there.

        pause: waits for so many seconds; none = until then or until the control process is gone.
        """
        self.closed = threading.Event()
        self._policy, self._ready, self._camera, self._channel = policy, ready, camera, channel
        self._instruction, self._clock, self._pause = instruction, clock, pause or self.closed.wait
        self._local, self._server_needed = local, server_needed
        self._looking = threading.Lock()  # a camera is looked at by one thread at a time
        self._hint: Hint | None = None
        self._handshakes, self._said_exhausted = Handshakes(), False
        self._sequence = 0
        self._called_at = self._not_before = -math.inf
        self._last_frame = self._last_reported = -1

    def run(self) -> None:
        """Step until the control process is gone. Raises what makes a restart pointless (see `step`), or what ended
        the listener.
        """
        acting = threading.Thread(target=self._act_locally_on, name="local", daemon=True)
        with ThreadPoolExecutor(1, "listener") as pool:
            listening = pool.submit(self._listen_on)
            if self._local is not None:
                acting.start()
            try:
                while not self.closed.is_set():
                    self.step()
            finally:
                self.closed.set()
                if self._local is not None:
                    acting.join()
        listening.result()

    def step(self) -> None:
        """Connect, or use the newest frame, or wait a moment.

        Raises SpecMismatch or ConfigError from the first handshake: a bundle or setting that no retry can mend.
        """
        if not self._handshakes.agreed:
            self._connect()
            return
        hint = self._hint
        if hint is not None and self._clock() < max(self._called_at + hint.gap_s, self._not_before):
            self._pause(_IDLE_S)
            return
        frame = self._new_frame()
        if frame is not None and hint is not None:
            self._last_frame = frame.index  # also while calls are not wanted: the frame is old when they are again
            if hint.enabled:
                self._call(frame, hint)
                return
        self._pause(_IDLE_S)

    def listen(self) -> None:
        """Take the newest hint, and report the camera's newest frame. Raises ChannelError where that can't be sent."""
        try:
            for message in self._channel.receive():
                if isinstance(message, Hint):
                    self._hint = message
        except (ChannelClosed, ChannelError):
            self.closed.set()
            return
        try:
            newest = self._camera.newest(self._clock())
        except RobotError as error:
            self._send(Miss(0, Outcome.FAULT, str(error)))
            return
        if newest is not None and newest[1] > self._last_reported:
            self._send(FrameSeen(*newest))
            self._last_reported = newest[1]

    def act_locally(self) -> None:
        """Have the local policy act on the newest frame, while control wants it."""
        hint = self._hint
        if self._local is None or hint is None or not hint.local:
            return
        chunk = self._local.step(self._look)
        if chunk is not None:
            self._send(chunk)

    def _act_locally_on(self) -> None:
        while not self.closed.wait(_IDLE_S):
            self.act_locally()

    def _look(self, now: float) -> Frame | None:
        with self._looking:
            return self._camera.latest(now)

    def _listen_on(self) -> None:
        try:
            while not self.closed.wait(_LISTEN_S):
                self.listen()
        finally:
            self.closed.set()  # whatever it was that ended this: without a listener perception would act on an old hint

    def _send(self, message: Message) -> bool:
        """False when control will not hear of it: it is gone, or it stalls and has no room."""
        try:
            return self._channel.send(message)
        except ChannelClosed:
            self.closed.set()
            return False

    def _connect(self) -> None:
        reason = self._handshakes.seek(self._policy.handshake if self._server_needed else lambda timeout_s: None)
        if reason is None:
            # Said once, and without it control would never be ready.
            while not (self._send(self._ready) or self.closed.is_set()):
                self._pause(_IDLE_S)
            return
        contract = isinstance(reason, SpecMismatch | ConfigError)
        self._send(Contract(str(reason)) if contract else Miss(0, outcome_of(reason), str(reason)))
        self._pause(self._handshakes.pause_s)

    def _new_frame(self) -> Frame | None:
        now = self._clock()
        try:
            frame = self._look(now)
            if frame is not None and frame.index > self._last_frame:
                return frame
            exhausted = self._camera.exhausted(now)
        except RobotError as error:
            self._send(Miss(0, Outcome.FAULT, str(error)))
            self._pause(UNREACHABLE_PAUSE_S)
            return None
        if exhausted and not self._said_exhausted:
            self._said_exhausted = self._send(Exhausted())
        return None

    def _call(self, frame: Frame, hint: Hint) -> None:
        now = self._called_at = self._clock()
        rung = min(hint.rung, len(self._policy.rungs) - 1)
        self._sequence = sequence = max(self._sequence, hint.sequence_floor) + 1
        budget_s = deadline_s(now - frame.captured_at, hint.max_age_s, hint.deadline_min_s, hint.deadline_max_s)
        self._send(Asked(sequence, hint.epoch, frame.captured_at, now + budget_s, rung))
        observation = Observation(frame.index, (frame.image,), self._instruction, frame.captured_at)
        try:
            chunk = self._policy.act(observation, deadline_s=budget_s, rung=self._policy.rungs[rung])
        except SplitVLAError as error:
            self._send(Miss(sequence, outcome_of(error), str(error)))
            self._handshakes.heed(error)
            if isinstance(error, LinkError):
                self._not_before = self._clock() + error.retry_after_s
            if isinstance(error, Unreachable):
                self._pause(UNREACHABLE_PAUSE_S)
            return
        self._send(
            Chunk(
                sequence=sequence,
                epoch=hint.epoch,
                captured_at=frame.captured_at,
                finished_at=self._clock(),
                actions=tuple(tuple(row) for row in chunk.actions.tolist()),
                clipped=len(chunk.clipped),
                stages=chunk.stages,
                wire_bytes=chunk.wire_bytes,
                rung=rung,
                hints=chunk.hints,
            )
        )
        self._policy.tell_answer()  # the action is on its way: who compares or records it has time now
