"""A way to an action: a camera frame in, an action out, and what it cost. The split's own way is here."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from typing import Protocol

from splitvla_edge.policy import EdgePolicy
from splitvla_shared.nouns import Image, Observation, Scheme, StageTimes
from splitvla_shared.rungs import Rung

DEADLINE_S = 30.0  # nobody moves: a slow answer is a result, not a miss


@dataclass(frozen=True, slots=True)
class Answered:
    """One action and its price.

    total_ms: from the frame to the action, on this machine's clock. robot_ms: what of it the robot computes.
    server_ms: as the server reports it, 0 where nothing is sent. up_bytes, down_bytes: the bodies, without headers.
    stages: of the split only.
    """

    tokens: tuple[int, ...]
    action: tuple[float, ...]
    total_ms: float
    robot_ms: float
    server_ms: float = 0.0
    up_bytes: int = 0
    down_bytes: int = 0
    stages: StageTimes | None = None

    @property
    def wire_ms(self) -> float:
        """What is left of the round trip: both directions of the wire, and the protocol's own work."""
        return max(0.0, self.total_ms - self.robot_ms - self.server_ms)


class Family(enum.Enum):
    """What crosses the link, which is what a team decides about."""

    JPEG = "JPEG"
    RAW = "raw picture"
    SPLIT = "split, exact"
    LOSSY = "split, lossy rung"
    LOCAL = "on the robot"

    @property
    def exact(self) -> bool:
        """Gives the reference's tokens where both compute in fp32; the others change pixels or round the embedding."""
        return self in (Family.RAW, Family.SPLIT, Family.LOCAL)


class Way(Protocol):
    """name: for people."""

    name: str
    family: Family

    def act(self, image: Image, instruction: str) -> Answered:
        """uint8 RGB (height, width, 3), as the camera gives it, to one action. Raises SplitVLAError."""

    def close(self) -> None: ...


class SplitWay:
    """This project, at one rung of the payload ladder. Mutable state: the number of the next frame."""

    def __init__(self, policy: EdgePolicy, rung: Rung) -> None:
        self.name, self.rung = f"split, {rung.name}", rung
        self.family = Family.SPLIT if rung.scheme in _EXACT_SCHEMES else Family.LOSSY
        self._policy, self._step = policy, 0

    def act(self, image: Image, instruction: str) -> Answered:
        self._step += 1
        observation = Observation(self._step, (image,), instruction, time.monotonic())
        chunk = self._policy.act(observation, deadline_s=DEADLINE_S, rung=self.rung)
        stages = chunk.stages
        server_ms = stages.decode_payload_ms + stages.queue_ms + stages.prefill_ms + stages.decode_ms
        return Answered(
            tokens=chunk.tokens,
            action=tuple(chunk.actions[0].tolist()),
            total_ms=stages.total_ms,
            robot_ms=stages.preprocess_ms + stages.encode_ms + stages.compress_ms + stages.detokenize_ms,
            server_ms=server_ms,
            up_bytes=chunk.wire_bytes,
            down_bytes=_REPLY_BYTES,
            stages=stages,
        )

    def close(self) -> None:
        pass  # the policy is its opener's


# They carry the encoder's float32 as it is.
_EXACT_SCHEMES = (Scheme.F32, Scheme.F32_ZSTD)
# Sequence, seven token ids, five durations, load: as protobuf writes them.
_REPLY_BYTES = 70
