"""The nouns of one frame's way: observation, encoded tensor, action chunk."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]  # (height, width, 3), RGB
FloatArray = npt.NDArray[np.float32]
ActionArray = npt.NDArray[np.float64]


class Scheme(enum.IntEnum):
    """Payload schemes; the values are those of `Scheme` in proto/inference.proto."""

    F32 = 1
    F16 = 2
    BF16 = 3
    INT8 = 4
    INT4 = 5
    F32_ZSTD = 17
    F16_ZSTD = 18
    BF16_ZSTD = 19
    INT8_ZSTD = 20
    INT4_ZSTD = 21
    KLT = 32
    KLT_DELTA = 33


@dataclass(frozen=True, slots=True)
class Observation:
    """What the robot saw at one moment.

    images: one uint8 RGB array (height, width, 3) a camera, in the order that the model was trained with.
    state: proprioceptive state, float32, or None where the model reads none.
    captured_at: monotonic seconds of this machine at which the oldest of the images was taken.
    """

    step: int
    images: tuple[Image, ...]
    instruction: str
    captured_at: float
    state: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A tensor as bytes. `shape` is known to both sides from the ModelSpec and never travels."""

    scheme: Scheme
    shape: tuple[int, int]
    data: bytes


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Where one frame's time went, in milliseconds; the order is the frame's way.

    network_ms is the call's round trip less the server's total: the wire both ways and gRPC. total_ms runs from the
    start of preprocessing to the finished action, on the robot's clock.
    """

    preprocess_ms: float = 0.0
    encode_ms: float = 0.0
    compress_ms: float = 0.0
    network_ms: float = 0.0
    decode_payload_ms: float = 0.0
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    detokenize_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerHints:
    """What a server said of itself with a reply. queued: requests waiting. busy: its GPU thread's share, 0..1.

    draining: it finishes its sessions and goes away.
    """

    queued: int = 0
    busy: float = 0.0
    draining: bool = False


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """Actions of one inference, in the robot's units, and what they cost.

    actions: float64 (length, dims). OpenVLA's single action is a chunk of length 1.
    tokens: the model's token ids, length * dims of them; empty for a continuous head.
    clipped: indices into `tokens` whose id lay outside the action bins and was clipped as the reference clips it.
    wire_bytes: size of the payload that was sent. hints: the server's own account of its load.
    """

    first_step: int
    actions: ActionArray
    source: str
    tokens: tuple[int, ...] = ()
    clipped: tuple[int, ...] = ()
    stages: StageTimes = StageTimes()
    wire_bytes: int = 0
    hints: ServerHints = ServerHints()
