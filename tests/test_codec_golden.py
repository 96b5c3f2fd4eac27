"""Golden bytes of every payload scheme.

Rules of this file:
 - These bytes are what robots and servers in the field send each other. Changing one of them is a breaking change of
   the wire format: it needs a new Scheme number, never a new value here.
 - For the zstd schemes the bytes of encoding depend on the version of the zstd library. There the committed frame must
   decode for ever, and encoding is held to a round trip.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from splitvla_shared.codec import SCHEMES, decode, encode
from splitvla_shared.nouns import EncodedTensor, FloatArray, Scheme

SMALL_SHAPE, WIDE_SHAPE = (2, 3), (3, 67)

# Encodings of `small()`, whole payloads with their CRC-32.
SMALL_PAYLOADS = {
    Scheme.F32: "0000803f000000bf0000803e00000000000000009a99e9c09866e273",
    Scheme.F16: "003c00b80034000000004dc72b9ae2b6",
    Scheme.BF16: "803f00bf803e00000000eac01a9bcfa3",
    Scheme.INT8: "0402013c7b706b3d7fc020000081a1584d82",
    Scheme.INT4: "92302c3cc702000908e39925",
}

# What decoding the above gives, as float32 bit patterns.
SMALL_DECODED = {
    Scheme.F32: [[0x3F800000, 0xBF000000, 0x3E800000], [0, 0, 0xC0E9999A]],
    Scheme.F16: [[0x3F800000, 0xBF000000, 0x3E800000], [0, 0, 0xC0E9A000]],
    Scheme.BF16: [[0x3F800000, 0xBF000000, 0x3E800000], [0, 0, 0xC0EA0000]],
    Scheme.INT8: [[0x3F800000, 0xBF010204, 0x3E810204], [0, 0, 0xC0E9999A]],
    Scheme.INT4: [[0x3F7FF000, 0xBF124000, 0x3E924000], [0, 0, 0xC0E9A000]],
}

# (length, SHA-256) of the encodings of `wide()`, whose rows have a short second INT4 group and a padding nibble.
WIDE_DIGESTS = {
    Scheme.F32: (808, "7a6f63a0c32131fc73ae77e8b8dd9aee9a20e8249de6aee1c2856acbb2e59b39"),
    Scheme.F16: (406, "f6e1acbadda5400d605927019f70a995a25bd1c4775a6553d369ff20b111b786"),
    Scheme.BF16: (406, "6e4d173a880f9793b6bcc626ac18b00ef658be421338352853ce0e708ccbda79"),
    Scheme.INT8: (217, "09c41bab22d8b0e318afe853c2082b14ce669aae1ffda776e6a3758ccbc66590"),
    Scheme.INT4: (118, "4107dd5447fa3e3fb683a9313a6a17719ba35791a3e2b5fa77700bae31498a69"),
}

# zstd 1.5 frames of `small()`: a raw block each.
SMALL_FRAMES = {
    Scheme.F32_ZSTD: "28b52ffd2418c100000000803f000000bf0000803e00000000000000009a99e9c02aace35c",
    Scheme.F16_ZSTD: "28b52ffd240c610000003c00b80034000000004dc7e99a4b26",
    Scheme.BF16_ZSTD: "28b52ffd240c610000803f00bf803e00000000eac02b3c5e3e",
    Scheme.INT8_ZSTD: "28b52ffd240e7100000402013c7b706b3d7fc020000081563be771",
    Scheme.INT4_ZSTD: "28b52ffd240841000092302c3cc7020009db282b4c",
}

# zstd 1.5 frames of `wide()`: compressed blocks.
WIDE_FRAMES = {
    Scheme.F32_ZSTD: (
        "28b52ffd6424025d020034030000c0bf0000803e0000a0bf0000003f000080bf00004042000040bf0000803f000000bf0000a03f"
        "000080be0000c03f003f3f07008093817240fb7f51900054f801eaaefa102d800213bf40c0"
    ),
    Scheme.F16_ZSTD: (
        "28b52ffd649200ad0100240200be003400bd003800bc005200ba003c00b8003d00b4003e00003a3a00ba003c00b80500833b400d"
        "58290c00050ee6b58d39062ac54821"
    ),
    Scheme.BF16_ZSTD: (
        "28b52ffd649200b501003402c0bf803ea0bf003f80bf404240bf803f00bfa03f80bec03f00003f003f40bf803f00bf0500839b41"
        "0d58290870d43598cc36261e86431873"
    ),
    Scheme.INT8_ZSTD: (
        "28b52ffd24d5bd010084020683c13e000000000683413cfc01fd01fd7ffe03ff03ff0400020055d66aeb7f008115962aab40c004"
        "008379fe71120b8408da3906d848aadc"
    ),
    Scheme.INT4_ZSTD: (
        "28b52ffd24726d01002402db46db3200000000db32923000007000900100e5f607192a4b5c6e7f90a1b2c47b0c030030930fc681"
        "014b7b99fe9a"
    ),
}


def small() -> FloatArray:
    return np.array([[1.0, -0.5, 0.25], [0.0, 0.0, -7.3]], np.float32)


def wide() -> FloatArray:
    """Quarters in -1.5..1.5 with one channel 64 times larger; the middle row is zero (partly negative zero)."""
    row, column = np.indices(WIDE_SHAPE)
    outlier = np.where(column == 5, 64, 1)
    quarters = ((row * 31 + column * 7) % 13 - 6) * outlier * (row != 1) / np.float32(4)
    return np.asarray(quarters, np.float32)


def raw_of(scheme: Scheme) -> Scheme:
    return Scheme[scheme.name.removesuffix("_ZSTD")]


@pytest.mark.parametrize("scheme", SMALL_PAYLOADS)
def test_a_small_tensor_gives_the_golden_bytes(scheme: Scheme) -> None:
    assert encode(small(), scheme).data.hex() == SMALL_PAYLOADS[scheme]


@pytest.mark.parametrize("scheme", SMALL_PAYLOADS)
def test_the_golden_bytes_give_the_golden_tensor(scheme: Scheme) -> None:
    decoded = decode(EncodedTensor(scheme, SMALL_SHAPE, bytes.fromhex(SMALL_PAYLOADS[scheme])))
    assert decoded.view(np.uint32).tolist() == SMALL_DECODED[scheme]


@pytest.mark.parametrize("scheme", WIDE_DIGESTS)
def test_a_tensor_with_a_short_group_gives_the_golden_bytes(scheme: Scheme) -> None:
    data = encode(wide(), scheme).data
    assert (len(data), hashlib.sha256(data).hexdigest()) == WIDE_DIGESTS[scheme]


@pytest.mark.parametrize("scheme", SMALL_FRAMES)
def test_a_committed_zstd_frame_decodes_for_ever(scheme: Scheme) -> None:
    for shape, frames, patches in ((SMALL_SHAPE, SMALL_FRAMES, small()), (WIDE_SHAPE, WIDE_FRAMES, wide())):
        decoded = decode(EncodedTensor(scheme, shape, bytes.fromhex(frames[scheme])))
        np.testing.assert_array_equal(decoded, decode(encode(patches, raw_of(scheme))))
        np.testing.assert_array_equal(decoded, decode(encode(patches, scheme)))


def test_every_scheme_has_golden_bytes() -> None:
    assert {*SMALL_PAYLOADS, *SMALL_FRAMES} == {*WIDE_DIGESTS, *WIDE_FRAMES} == set(SCHEMES)
