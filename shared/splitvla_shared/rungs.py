"""The payload ladder: the settings a frame may be sent with, best first, and what each is expected to cost and keep."""

from __future__ import annotations

from dataclasses import dataclass

from splitvla_shared.codec import max_payload_bytes
from splitvla_shared.nouns import Scheme

# What every bundle can send without calibration, in falling order of bytes.
_PLAIN = (Scheme.BF16, Scheme.INT8, Scheme.INT4)


@dataclass(frozen=True, slots=True)
class Rung:
    """One entry of the ladder.

    wire_bytes: of one camera's payload, expected. agreement: expected share of action tokens that are those of the
    best rung, None where nobody has measured it. codec_rung: index into the codec tables' rungs where scheme is KLT;
    wire_bytes is then a key frame's.
    """

    name: str
    scheme: Scheme
    wire_bytes: int
    agreement: float | None = None
    codec_rung: int | None = None


def plain_ladder(top: Scheme, shape: tuple[int, int]) -> tuple[Rung, ...]:
    """`top`, then the plain schemes that are smaller. shape: (patches, embed_dim) of one camera."""
    first = max_payload_bytes(top, shape)
    below = [scheme for scheme in _PLAIN if max_payload_bytes(scheme, shape) < first]
    return tuple(Rung(scheme.name.lower(), scheme, max_payload_bytes(scheme, shape)) for scheme in (top, *below))
