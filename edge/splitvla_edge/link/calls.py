"""One call over the link, typed: what is sent, what comes back, and what a server says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from splitvla_shared.nouns import EncodedTensor, FloatArray, Scheme
from splitvla_shared.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class CameraPayload:
    """One camera's encoded (patches, embed_dim) tensor; `camera` is a name for people.

    reference_sequence: of the frame that this is a difference from; None where it stands alone.
    """

    camera: str
    tensor: EncodedTensor
    reference_sequence: int | None = None


@dataclass(frozen=True, slots=True)
class InferCall:
    """One observation as it is sent. What does not travel:

    chunk_length: what the reply is checked against. key_frame: makes the same observation anew, under a sequence of its
    own, without differences; None where there are none. held_by: address of the server that holds their references.
    """

    fingerprint: str
    session: int
    sequence: int
    robot: str
    instruction: str
    cameras: tuple[CameraPayload, ...]
    action_dims: int
    chunk_length: int = 1
    state: FloatArray | None = None
    draft_tokens: tuple[int, ...] = ()
    key_frame: Callable[[], InferCall] | None = None
    held_by: str = ""

    def fit_for(self, server: str) -> InferCall:
        """The call itself, or as key frames where it is differences from what another server holds."""
        return self if self.key_frame is None or server == self.held_by else self.key_frame()

    @property
    def wire_bytes(self) -> int:
        """Size of the payloads."""
        return sum(len(camera.tensor.data) for camera in self.cameras)

    def miss(self, deadline_s: float) -> str:
        """What to say of this call when it is late: "frame 812: no answer in 150 ms (int4, 282,624 B)"."""
        schemes = "+".join(sorted({camera.tensor.scheme.name.lower() for camera in self.cameras}))
        return f"frame {self.sequence}: no answer in {deadline_s * 1e3:.0f} ms ({schemes}, {self.wire_bytes:,} B)"


@dataclass(frozen=True, slots=True)
class ServerStages:
    """Durations on the server, ms; total_ms runs from the parsed request to the built reply."""

    decode_payload_ms: float = 0.0
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """queued: requests waiting; sessions: seen within ten seconds; busy: the GPU thread's share of the last second."""

    queued: int = 0
    sessions: int = 0
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """Checked: chunk_length * action_dims `tokens`, or a finite float32 `chunk` (chunk_length, action_dims).

    key_frame_needed: neither; the server lacks the frame that the payload is a difference from. server: its address.
    """

    sequence: int
    tokens: tuple[int, ...] = ()
    chunk: FloatArray | None = None
    stages: ServerStages = ServerStages()
    load: ServerLoad = ServerLoad()
    draining: bool = False
    key_frame_needed: bool = False
    accepted_draft_tokens: int = 0
    server: str = ""


@dataclass(frozen=True, slots=True)
class ServerDescription:
    """What a server serves. Schemes that this version does not know are left out."""

    spec: ModelSpec
    schemes: tuple[Scheme, ...]
    precision: str = ""
    version: str = ""
    draining: bool = False
    load: ServerLoad = ServerLoad()
