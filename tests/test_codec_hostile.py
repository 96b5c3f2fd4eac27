"""Hostile payloads: whatever the bytes are, they become the agreed tensor or a CodecError, in bounded memory."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from splitvla_shared.codec import SCHEMES, decode, encode, encoded_size
from splitvla_shared.codec.envelope import MAX_WINDOW_BYTES
from splitvla_shared.errors import CodecError
from splitvla_shared.nouns import EncodedTensor, FloatArray, Scheme

RAW = (Scheme.F32, Scheme.F16, Scheme.BF16, Scheme.INT8, Scheme.INT4)
ZSTD = tuple(scheme for scheme in SCHEMES if scheme not in RAW)
SHAPE = (3, 67)
GIBIBYTE = 1 << 30

# Frame header descriptor bits of RFC 8878, section 3.1.1.1.1.
SIZE_IN_8_BYTES, SINGLE_SEGMENT, CHECKSUM, DICTIONARY_IN_1_BYTE = 0xC0, 0x20, 0x04, 0x01
WINDOW_128_KIB = 7 << 3


def patches(shape: tuple[int, int] = SHAPE) -> FloatArray:
    row, column = np.indices(shape)
    return (((row * 31 + column * 7) % 13 - 6) / np.float32(4)).astype(np.float32)


def seal(scheme: Scheme, body: bytes) -> bytes:
    """`body` in a flawless envelope, so that only the body itself can be at fault."""
    if scheme in RAW:
        return body + zlib.crc32(body).to_bytes(4, "little")
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(body)


def frame(
    content_bytes: int, runs: int, *, flags: int = CHECKSUM, window: int = WINDOW_128_KIB, extra: bytes = b""
) -> bytes:
    """A hand-made frame that declares `content_bytes` and holds `runs` blocks of 128 KiB of zeros, 4 bytes each."""
    header = b"\x28\xb5\x2f\xfd" + bytes([SIZE_IN_8_BYTES | flags, window]) + extra + struct.pack("<Q", content_bytes)
    last, run_length_block, size = 1, 1 << 1, (128 << 10) << 3
    block = (run_length_block | size).to_bytes(3, "little") + b"\0"
    end = (last | run_length_block | size).to_bytes(3, "little") + b"\0"
    return header + block * (runs - 1) + end + bytes(4)


def outcome(scheme: Scheme, shape: tuple[int, int], data: bytes) -> FloatArray | None:
    """The decoded tensor, checked to be one; None for a CodecError. Any other exception fails the test."""
    try:
        decoded = decode(EncodedTensor(scheme, shape, data))
    except CodecError:
        return None
    assert decoded.shape == shape
    assert decoded.dtype == np.float32
    assert np.isfinite(decoded).all()
    return decoded


def refused(scheme: Scheme, data: bytes, match: str, shape: tuple[int, int] = SHAPE) -> None:
    with pytest.raises(CodecError, match=match):
        decode(EncodedTensor(scheme, shape, data))


def single_bit_flips(data: bytes) -> Iterator[bytes]:
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), SHAPE])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_single_bit_flip_gives_a_wrong_tensor(scheme: Scheme, shape: tuple[int, int]) -> None:
    """A few bits of a zstd frame carry no meaning (RFC 8878 has an "unused bit"): there the tensor must be unharmed."""
    data = encode(patches(shape), scheme).data
    expected = decode(EncodedTensor(scheme, shape, data))
    survivors = [got for flipped in single_bit_flips(data) if (got := outcome(scheme, shape, flipped)) is not None]
    assert scheme in ZSTD or not survivors
    for survivor in survivors:
        np.testing.assert_array_equal(survivor, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_truncation_is_refused(scheme: Scheme) -> None:
    data = encode(patches(), scheme).data
    assert all(outcome(scheme, SHAPE, data[:length]) is None for length in range(len(data)))


@pytest.mark.parametrize("tail", [b"\0", b"\xff" * 4, b"x" * 10_000, b"\x50\x2a\x4d\x18\0\0\0\0"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_behind_the_payload_are_refused(scheme: Scheme, tail: bytes) -> None:
    """The last tail is an empty skippable frame, which most zstd readers pass over."""
    assert outcome(scheme, SHAPE, encode(patches(), scheme).data + tail) is None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_second_payload_behind_the_first_is_refused(scheme: Scheme) -> None:
    data = encode(patches(), scheme).data
    assert outcome(scheme, SHAPE, data + data) is None


@pytest.mark.parametrize("scheme", ZSTD)
def test_a_body_split_over_two_frames_is_refused(scheme: Scheme) -> None:
    body = bytes(encoded_size(scheme, SHAPE))
    refused(scheme, seal(scheme, body[:50]) + seal(scheme, body[50:]), "declares 50 bytes")


@settings(max_examples=300)
@given(st.sampled_from(list(SCHEMES)), st.binary(max_size=400))
def test_arbitrary_bytes_are_refused(scheme: Scheme, data: bytes) -> None:
    assert outcome(scheme, SHAPE, data) is None


@settings(max_examples=300)
@given(st.sampled_from(ZSTD), st.binary(max_size=60), st.binary(min_size=1, max_size=8))
def test_arbitrary_bytes_behind_a_plausible_frame_header_are_refused(
    scheme: Scheme, blocks: bytes, size: bytes
) -> None:
    for flags in (0x24, 0x64, 0xA4, 0xE4):
        assert outcome(scheme, SHAPE, b"\x28\xb5\x2f\xfd" + bytes([flags]) + size + blocks) is None
    declared = encoded_size(scheme, SHAPE).to_bytes(8, "little")
    assert outcome(scheme, SHAPE, b"\x28\xb5\x2f\xfd\xe4" + declared + blocks) is None


@settings(max_examples=300)
@given(st.sampled_from(list(SCHEMES)), st.tuples(st.integers(1, 3), st.integers(1, 70)), st.data())
def test_a_flawless_envelope_round_any_body_gives_a_finite_tensor_or_an_error(
    scheme: Scheme, shape: tuple[int, int], data: st.DataObject
) -> None:
    size = encoded_size(scheme, shape)
    outcome(scheme, shape, seal(scheme, data.draw(st.binary(min_size=size, max_size=size))))


@settings(max_examples=300)
@given(st.sampled_from(list(SCHEMES)), st.data())
def test_any_spliced_payload_is_refused_or_unharmed(scheme: Scheme, data: st.DataObject) -> None:
    payload = encode(patches(), scheme).data
    start = data.draw(st.integers(0, len(payload)))
    end = data.draw(st.integers(start, len(payload)))
    got = outcome(scheme, SHAPE, payload[:start] + data.draw(st.binary(max_size=20)) + payload[end:])
    if got is not None:
        np.testing.assert_array_equal(got, decode(EncodedTensor(scheme, SHAPE, payload)))


@pytest.mark.parametrize("scheme", ZSTD)
def test_a_bomb_that_declares_a_gibibyte_is_refused_before_memory_is_taken(scheme: Scheme) -> None:
    bomb = frame(GIBIBYTE, runs=1)
    tracemalloc.start()
    refused(scheme, bomb, "declares 1073741824 bytes")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("scheme", ZSTD)
def test_a_bomb_that_lies_about_its_size_takes_no_more_than_the_agreed_size(scheme: Scheme) -> None:
    shape = (256, 1024)
    size = encoded_size(scheme, shape)
    bomb = frame(size, runs=GIBIBYTE >> 17)
    assert len(bomb) < size  # else its length alone would give it away
    tracemalloc.start()
    refused(scheme, bomb, "can't be read", shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size + (1 << 20)


def test_the_hand_made_frame_is_refused_for_its_lie_alone() -> None:
    """Without this the two tests above could pass on frames that are malformed in some other way."""
    honest = frame(1 << 20, runs=8, flags=0)
    assert zstandard.ZstdDecompressor().decompress(honest[:-4]) == bytes(1 << 20)


@pytest.mark.parametrize("scheme", ZSTD)
def test_a_header_that_declares_more_or_less_than_it_holds_is_refused(scheme: Scheme) -> None:
    size = encoded_size(scheme, SHAPE)
    for held in (size - 1, size + 1):
        refused(scheme, seal(scheme, bytes(held)), f"declares {held} bytes")
        header = b"\x28\xb5\x2f\xfd" + bytes([SIZE_IN_8_BYTES | SINGLE_SEGMENT | CHECKSUM]) + struct.pack("<Q", size)
        block = (1 | held << 3).to_bytes(3, "little") + bytes(held)
        refused(scheme, header + block + bytes(4), "zstd payload")


@pytest.mark.parametrize("scheme", ZSTD)
def test_a_frame_without_a_declared_size_is_refused(scheme: Scheme) -> None:
    compressor = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False)
    refused(scheme, compressor.compress(bytes(encoded_size(scheme, SHAPE))), "declares no size")


@pytest.mark.parametrize("scheme", ZSTD)
def test_a_frame_without_a_checksum_is_refused(scheme: Scheme) -> None:
    compressor = zstandard.ZstdCompressor(write_checksum=False)
    refused(scheme, compressor.compress(bytes(encoded_size(scheme, SHAPE))), "no checksum")


@pytest.mark.parametrize("scheme", ZSTD)
def test_a_frame_that_needs_a_dictionary_is_refused(scheme: Scheme) -> None:
    data = frame(encoded_size(scheme, SHAPE), runs=1, flags=CHECKSUM | DICTIONARY_IN_1_BYTE, extra=b"\x07")
    refused(scheme, data, "dictionary 7")


@pytest.mark.parametrize("scheme", ZSTD)
def test_a_window_above_the_bound_is_refused(scheme: Scheme) -> None:
    size = encoded_size(scheme, SHAPE)
    refused(scheme, frame(size, runs=1, window=(22 - 10) << 3), f"at most {MAX_WINDOW_BYTES}")


@pytest.mark.parametrize("megabytes", [1, 4, 32])
def test_our_own_frames_stay_within_the_window_bound(megabytes: int) -> None:
    tensor = encode(np.zeros((megabytes * 64, 4096), np.float32), Scheme.F32_ZSTD)
    assert zstandard.get_frame_parameters(tensor.data).window_size <= MAX_WINDOW_BYTES // 4


@pytest.mark.parametrize("scheme", RAW)
@pytest.mark.parametrize("other", RAW)
def test_a_payload_of_another_scheme_is_refused_or_has_the_same_size(scheme: Scheme, other: Scheme) -> None:
    """F16 and BF16 are equally long: which of the two it is stands in the message alone."""
    same = encoded_size(scheme, SHAPE) == encoded_size(other, SHAPE)
    assert (outcome(other, SHAPE, encode(patches(), scheme).data) is None) is not same


@pytest.mark.parametrize("scheme", RAW)
def test_zstd_and_raw_payloads_are_never_mistaken_for_each_other(scheme: Scheme) -> None:
    compressed = Scheme[f"{scheme.name}_ZSTD"]
    assert outcome(compressed, SHAPE, encode(patches(), scheme).data) is None
    assert outcome(scheme, SHAPE, encode(patches(), compressed).data) is None


@pytest.mark.parametrize("shape", [(4, 67), (3, 69), (1, 1), (0, 67), (-3, -67), (1 << 40, 1 << 40)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_payload_of_another_shape_is_refused(scheme: Scheme, shape: tuple[int, int]) -> None:
    assert outcome(scheme, shape, encode(patches(), scheme).data) is None


def body_with_scale(scheme: Scheme, scale: float) -> bytes:
    """A (1, 64) body whose only scale is `scale` and whose codes are all 1."""
    int8 = scheme in (Scheme.INT8, Scheme.INT8_ZSTD)
    with np.errstate(over="ignore"):
        return np.array([scale], "<f4" if int8 else "<f2").tobytes() + (b"\x01" * 64 if int8 else b"\x11" * 32)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, -0.0])
@pytest.mark.parametrize("scheme", [Scheme.INT8, Scheme.INT4, Scheme.INT8_ZSTD, Scheme.INT4_ZSTD])
def test_a_scale_that_is_negative_or_not_finite_is_refused(scheme: Scheme, scale: float) -> None:
    refused(scheme, seal(scheme, body_with_scale(scheme, scale)), "negative or not finite", (1, 64))
    assert outcome(scheme, (1, 64), seal(scheme, body_with_scale(scheme, 0.5))) is not None


@pytest.mark.parametrize("scheme", [Scheme.INT8, Scheme.INT8_ZSTD])
def test_a_finite_scale_whose_products_overflow_is_refused(scheme: Scheme) -> None:
    refused(scheme, seal(scheme, body_with_scale(scheme, 3e38)), "overflows", (1, 64))


@pytest.mark.parametrize("scheme", [Scheme.INT8, Scheme.INT8_ZSTD])
def test_the_int8_code_minus_128_is_refused(scheme: Scheme) -> None:
    refused(scheme, seal(scheme, struct.pack("<f", 1.0) + b"\x01\x80"), "-128", (1, 2))


@pytest.mark.parametrize("packed", [b"\x08", b"\x80", b"\x88"])
@pytest.mark.parametrize("scheme", [Scheme.INT4, Scheme.INT4_ZSTD])
def test_the_int4_code_minus_8_is_refused(scheme: Scheme, packed: bytes) -> None:
    refused(scheme, seal(scheme, struct.pack("<e", 1.0) + packed), "-8", (1, 2))


@pytest.mark.parametrize("scheme", [Scheme.INT4, Scheme.INT4_ZSTD])
def test_int4_padding_that_is_not_zero_is_refused(scheme: Scheme) -> None:
    refused(scheme, seal(scheme, struct.pack("<e", 1.0) + b"\x11"), "padding", (1, 1))


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("scheme", "dtype", "shift"),
    [(Scheme.F32, "<f4", 0), (Scheme.F16, "<f2", 0), (Scheme.BF16, "<f4", 16)],
)
def test_a_float_that_is_not_finite_is_refused(scheme: Scheme, dtype: str, shift: int, value: float) -> None:
    elements = np.array([1.0] * 7 + [value], dtype)
    body = (elements.view("<u4") >> np.uint32(shift)).astype("<u2").tobytes() if shift else elements.tobytes()
    for sealed in (scheme, Scheme[f"{scheme.name}_ZSTD"]):
        refused(sealed, seal(sealed, body), "NaN or infinity", (2, 4))
