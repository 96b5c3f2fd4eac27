"""The payload codec: a float32 (rows, dim) tensor to bytes and back; docs/wire.md has every layout, byte by byte.

Rules of this package:
 - Bytes become a finite float32 tensor of the agreed shape, or a CodecError; no other exception leaves it.
 - Sizes are checked against the agreed shape before anything is allocated or decompressed.
 - Pure functions: no state, no clock; safe to call from several threads.
 - The bytes are a contract between machines: tests/test_codec_golden.py pins them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np

from splitvla_shared.codec import floats, integers
from splitvla_shared.codec.envelope import CRC, ZSTD, Envelope
from splitvla_shared.codec.layout import Layout
from splitvla_shared.errors import CodecError, ConfigError
from splitvla_shared.nouns import EncodedTensor, FloatArray, Scheme

__all__ = [
    "SCHEMES",
    "TRANSFORM_SCHEMES",
    "Codec",
    "decode",
    "encode",
    "encoded_size",
    "max_payload_bytes",
    "parse_scheme",
]


@dataclass(frozen=True, slots=True)
class Codec:
    """A scheme: how the elements are laid out, and how the body travels."""

    layout: Layout
    envelope: Envelope


SCHEMES: dict[Scheme, Codec] = {
    Scheme.F32: Codec(floats.F32, CRC),
    Scheme.F16: Codec(floats.F16, CRC),
    Scheme.BF16: Codec(floats.BF16, CRC),
    Scheme.INT8: Codec(integers.INT8, CRC),
    Scheme.INT4: Codec(integers.INT4, CRC),
    Scheme.F32_ZSTD: Codec(floats.F32, ZSTD),
    Scheme.F16_ZSTD: Codec(floats.F16, ZSTD),
    Scheme.BF16_ZSTD: Codec(floats.BF16, ZSTD),
    Scheme.INT8_ZSTD: Codec(integers.INT8, ZSTD),
    Scheme.INT4_ZSTD: Codec(integers.INT4, ZSTD),
}
# Schemes that need a model's calibrated tables, and a session: see transform.py.
TRANSFORM_SCHEMES = (Scheme.KLT, Scheme.KLT_DELTA)
if {*SCHEMES, *TRANSFORM_SCHEMES} != set(Scheme):
    raise AssertionError(f"schemes without a codec: {set(Scheme) ^ {*SCHEMES, *TRANSFORM_SCHEMES}}")


def encode(patches: FloatArray, scheme: Scheme) -> EncodedTensor:
    """Lay out `patches`, float32 (rows, dim), as `scheme`.

    Raises CodecError when an element is not finite or too large for the scheme; infinity never reaches the wire.
    """
    codec = _codec(scheme)
    if patches.ndim != 2 or not patches.size or patches.dtype != np.float32:
        raise CodecError(f"patches are {patches.dtype} {patches.shape}; expected float32 (rows, dim), both at least 1")
    ordered = np.ascontiguousarray(patches, dtype="<f4")
    rows, dim = ordered.shape
    return EncodedTensor(Scheme(scheme), (rows, dim), codec.envelope.seal(codec.layout.pack(ordered)))


def decode(tensor: EncodedTensor) -> FloatArray:
    """The tensor of the agreed shape: a new, writable, C-contiguous, finite float32 array (rows, dim).

    Raises CodecError when the bytes are anything but one whole, undamaged payload of that scheme and shape.
    """
    codec = _codec(tensor.scheme)
    rows, dim = _checked_shape(tensor.shape)
    body = codec.envelope.open(tensor.data, codec.layout.size(rows, dim))
    return codec.layout.unpack(body, rows, dim)


def encoded_size(scheme: Scheme, shape: tuple[int, int]) -> int:
    """Exact bytes of the body: without the 4 bytes of CRC-32, and before zstd."""
    return _codec(scheme).layout.size(*_checked_shape(shape))


def max_payload_bytes(scheme: Scheme, shape: tuple[int, int]) -> int:
    """The most bytes that `encode` can give; without zstd it is exactly what it gives."""
    return _codec(scheme).envelope.bound(encoded_size(scheme, shape))


def parse_scheme(name: str) -> Scheme:
    """The scheme that a person names, in any case and with "-", "_" or "+": "int8_zstd". Raises ConfigError."""
    names = {member.name.lower(): member for member in SCHEMES}
    wanted = name.strip().lower().replace("-", "_").replace("+", "_")
    if wanted in names:
        return names[wanted]
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(names)}"
    raise ConfigError(f"unknown payload scheme {name!r}; {hint}")


def _codec(scheme: Scheme) -> Codec:
    if scheme in TRANSFORM_SCHEMES:
        raise CodecError(f"payload scheme {Scheme(scheme).name} needs a calibrated bundle, which is not at hand here")
    try:
        return SCHEMES[scheme]
    except (KeyError, TypeError):
        raise CodecError(f"payload scheme {scheme!r} is unknown; known: {[s.name for s in Scheme]}") from None


def _checked_shape(shape: tuple[int, int]) -> tuple[int, int]:
    rows, dim = shape
    if rows < 1 or dim < 1:
        raise CodecError(f"a tensor of shape {shape} has no elements; expected (rows, dim), both at least 1")
    return rows, dim
