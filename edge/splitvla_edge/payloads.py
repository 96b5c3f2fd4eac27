"""What a frame is sent as: plain, or as coefficients, against the last frame that the server is known to hold.

Rules of this file:
 - A reference is a frame that was *acknowledged*: its action came back. A frame without an answer may have been lost.
 - References are kept by server: another replica, or one that has started anew, holds none of them.
 - No frame is pending beyond the next: an answer that comes later is not waited for, and acknowledges nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splitvla_edge.link.calls import CameraPayload
from splitvla_shared.codec import encode
from splitvla_shared.codec.model import Reference
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.codec.transform import Binding, TransformCodec
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import EncodedTensor, FloatArray, Scheme
from splitvla_shared.rungs import Rung

# A frame as a difference, and the key frame that may take its place.
_MAX_PENDING = 2


@dataclass(frozen=True, slots=True)
class FrameId:
    """What names a frame on the wire."""

    session: int
    sequence: int


class PayloadCoder:
    """Owned by the policy, used from its thread.

    Mutable state: the references of the frame that each server last acknowledged, one a camera, and those of the frame
    that is under way. Bounded: one frame a server of the configuration, and `_MAX_PENDING`.
    """

    def __init__(self, tables: CodecTables | None) -> None:
        """tables: of the bundle; None where it is not calibrated."""
        self._codec = None if tables is None else TransformCodec(tables)
        self._held: dict[str, tuple[Reference, ...]] = {}
        self._pending: dict[int, tuple[Reference, ...]] = {}

    def encode(
        self, cameras: Sequence[FloatArray], rung: Rung, frame: FrameId, server: str | None
    ) -> tuple[CameraPayload, ...]:
        """Payloads of all cameras, in their order.

        cameras: float32, embeddings (patches, embed_dim) for a plain rung, coefficients (patches, columns) for one of
        the codec. server: whose references may be used; None for key frames. Raises CodecError for numbers that the
        rung can't carry, ConfigError for a codec rung without tables.
        """
        if rung.codec_rung is None:
            return tuple(CameraPayload(_name(i), encode(each, rung.scheme)) for i, each in enumerate(cameras))
        if self._codec is None:
            raise ConfigError(f"payload rung {rung.name} needs codec tables, which this bundle has none of; calibrate")
        held = () if server is None else self._held.get(server, ())
        payloads, references = [], []
        for index, coefficients in enumerate(cameras):
            binding = Binding(frame.session, frame.sequence, index)
            known = held[index] if index < len(held) else None
            coded = self._codec.encode(coefficients, rung.codec_rung, binding, known)
            tensor = EncodedTensor(coded.scheme, self._codec.tables.shape, coded.data)
            payloads.append(CameraPayload(_name(index), tensor, coded.reference_sequence))
            references.append(coded.reference)
        self._pending[frame.sequence] = tuple(references)
        while len(self._pending) > _MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        return tuple(payloads)

    def acknowledge(self, server: str, sequence: int) -> None:
        """`server` gave the action for frame `sequence`, so it holds that frame. A plain frame is no reference."""
        references = self._pending.get(sequence)
        self._pending.clear()
        if references is not None:
            self._held[server] = references

    def forget(self, server: str | None = None) -> None:
        """`server` lacks what it was thought to hold; None: all of them."""
        if server is None:
            self._held.clear()
            self._pending.clear()
        else:
            self._held.pop(server, None)


def differs(payloads: Sequence[CameraPayload]) -> bool:
    """Whether any is a difference."""
    return any(payload.tensor.scheme is Scheme.KLT_DELTA for payload in payloads)


def _name(index: int) -> str:
    return f"camera{index}"
