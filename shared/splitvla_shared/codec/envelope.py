"""How a body travels: with a CRC-32 behind it, or as one zstd frame with its size and checksum inside.

Every check that bounds memory runs before anything is allocated: python-zstandard ignores `max_output_size` where the
frame declares a size, so the declared size itself is compared with the one that the shape implies.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zstandard

from splitvla_shared.codec.layout import Part
from splitvla_shared.errors import CodecError

# Level 3 is slower and, on these bodies, larger.
_LEVEL = 1
# Level 1 writes windows of at most 2^19 bytes whatever the body's size; two spare bits admit other zstd versions.
MAX_WINDOW_BYTES = 1 << 21
_CRC_BYTES = 4


@dataclass(frozen=True, slots=True)
class Envelope:
    """seal: a body's parts to payload bytes. open: payload and exact body size to the body, or CodecError.

    bound: the largest payload for a body of that many bytes.
    """

    seal: Callable[[Sequence[Part]], bytes]
    open: Callable[[bytes, int], memoryview]
    bound: Callable[[int], int]


def _seal_crc(parts: Sequence[Part]) -> bytes:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part.data.cast("B"), crc)
    return b"".join((*(part.data for part in parts), crc.to_bytes(_CRC_BYTES, "little")))


def _open_crc(data: bytes, body_bytes: int) -> memoryview:
    if len(data) != body_bytes + _CRC_BYTES:
        raise CodecError(f"the payload has {len(data)} bytes, expected exactly {body_bytes + _CRC_BYTES}")
    body = memoryview(data)[:-_CRC_BYTES]
    crc = int.from_bytes(data[-_CRC_BYTES:], "little")
    if zlib.crc32(body) != crc:
        raise CodecError(f"the payload's CRC-32 is {zlib.crc32(body):08x}, expected {crc:08x}: damaged on the way")
    return body


def _zstd_bound(body_bytes: int) -> int:
    """ZSTD_COMPRESSBOUND of zstd.h, and a checksum."""
    small = ((128 << 10) - body_bytes) >> 11 if body_bytes < 128 << 10 else 0
    return body_bytes + (body_bytes >> 8) + small + 4


def _seal_zstd(parts: Sequence[Part]) -> bytes:
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True)
    return compressor.compress(b"".join(part.data for part in parts))


def _open_zstd(data: bytes, body_bytes: int) -> memoryview:
    if len(data) > _zstd_bound(body_bytes):
        raise CodecError(f"the zstd payload has {len(data)} bytes, at most {_zstd_bound(body_bytes)} are possible")
    _check_frame_header(data, body_bytes)
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    try:
        body = decompressor.decompress(data, max_output_size=body_bytes, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise CodecError(f"the zstd payload of {len(data)} bytes can't be read: {error or 'out of memory'}") from error
    if len(body) != body_bytes:
        raise CodecError(f"the zstd payload unpacks to {len(body)} bytes, expected exactly {body_bytes}")
    return memoryview(body)


def _check_frame_header(data: bytes, body_bytes: int) -> None:
    try:
        frame = zstandard.get_frame_parameters(data)
    except zstandard.ZstdError as error:
        raise CodecError(f"the payload of {len(data)} bytes is no zstd frame: {error}") from error
    if frame.content_size != body_bytes:
        declared = "no size" if frame.content_size == zstandard.CONTENTSIZE_UNKNOWN else f"{frame.content_size} bytes"
        raise CodecError(f"the zstd frame declares {declared}, expected exactly {body_bytes} bytes")
    if frame.window_size > MAX_WINDOW_BYTES:
        raise CodecError(f"the zstd frame wants a window of {frame.window_size} bytes, at most {MAX_WINDOW_BYTES}")
    if not frame.has_checksum:
        raise CodecError("the zstd frame has no checksum; the sender must write one")
    if frame.dict_id:
        raise CodecError(f"the zstd frame wants dictionary {frame.dict_id}; dictionaries are not used here")


CRC = Envelope(_seal_crc, _open_crc, lambda body_bytes: body_bytes + _CRC_BYTES)
ZSTD = Envelope(_seal_zstd, _open_zstd, _zstd_bound)
