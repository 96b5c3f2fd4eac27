"""The payload codec: what survives a round trip, how closely, and what the encoder refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from splitvla_shared.codec import (
    SCHEMES,
    TRANSFORM_SCHEMES,
    decode,
    encode,
    encoded_size,
    max_payload_bytes,
    parse_scheme,
)
from splitvla_shared.codec.integers import GROUP
from splitvla_shared.errors import CodecError, ConfigError
from splitvla_shared.nouns import EncodedTensor, FloatArray, Scheme

RAW = (Scheme.F32, Scheme.F16, Scheme.BF16, Scheme.INT8, Scheme.INT4)
SHAPES = [(1, 1), (256, 96), (3, 100), (512, 4096)]
F32 = np.finfo(np.float32)
WIRE_REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "wire.md"


def zstd_of(scheme: Scheme) -> Scheme:
    return Scheme[f"{scheme.name}_ZSTD"]


def heavy_tailed(shape: tuple[int, int], seed: int = 0) -> FloatArray:
    """Like a residual stream: Laplace, with a few channels a hundred times larger."""
    rng = np.random.default_rng(seed)
    patches = rng.laplace(size=shape).astype(np.float32)
    patches[:, :: max(1, shape[1] // 3)] *= 100
    return patches


def steps(patches: FloatArray, scheme: Scheme) -> npt.NDArray[np.float64]:
    """The quantiser's step of each element, read from the bytes that were sent."""
    rows, dim = patches.shape
    data = encode(patches, scheme).data
    if scheme is Scheme.INT8:
        return np.broadcast_to(np.frombuffer(data, "<f4", rows)[:, None], patches.shape).astype(np.float64)
    groups = -(-dim // GROUP)
    scales = np.frombuffer(data, "<f2", rows * groups).reshape(rows, groups)
    return np.repeat(scales, GROUP, axis=1)[:, :dim].astype(np.float64)


def error_bound(patches: FloatArray, scheme: Scheme) -> npt.NDArray[np.float64]:
    """The largest error that `scheme` may make at each element."""
    exact = np.abs(patches.astype(np.float64))
    if scheme is Scheme.F32:
        return np.zeros(patches.shape)
    if scheme is Scheme.F16:
        return np.maximum(exact * 2.0**-11, 2.0**-25)
    if scheme is Scheme.BF16:
        return np.maximum(exact * 2.0**-8, 2.0**-134)
    # Half a step; dividing and multiplying in float32 adds a rounding of the element on either side of it.
    return steps(patches, scheme) / 2 + exact * 2.0**-23


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", RAW)
def test_a_round_trip_stays_within_the_scheme_s_error_bound(scheme: Scheme, shape: tuple[int, int]) -> None:
    patches = heavy_tailed(shape)
    error = np.abs(decode(encode(patches, scheme)).astype(np.float64) - patches)
    assert (error <= error_bound(patches, scheme)).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", RAW)
def test_zstd_changes_the_bytes_and_never_the_tensor(scheme: Scheme, shape: tuple[int, int]) -> None:
    patches = heavy_tailed(shape)
    np.testing.assert_array_equal(decode(encode(patches, zstd_of(scheme))), decode(encode(patches, scheme)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_decoded_tensor_is_native_float32_contiguous_and_writable(scheme: Scheme) -> None:
    for shape in ((2, 3), (2, 2 * GROUP), (2, GROUP + 1)):
        decoded = decode(encode(np.ones(shape, np.float32), scheme))
        assert decoded.shape == shape
        assert decoded.dtype == np.float32
        assert decoded.flags.c_contiguous
        assert decoded.flags.writeable


def test_float32_keeps_every_bit_of_a_finite_number() -> None:
    patches = np.array([[0.0, -0.0, F32.max, F32.smallest_subnormal, -F32.tiny, 1 / 3]], np.float32)
    assert decode(encode(patches, Scheme.F32)).tobytes() == patches.tobytes()


def test_bfloat16_rounds_to_nearest_and_ties_to_even() -> None:
    below, tie_down, tie_up, above = 1 + 2.0**-9, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20
    patches = np.array([[below, tie_down, tie_up, above, -tie_up]], np.float32)
    expected = [1.0, 1.0, 1 + 2.0**-6, 1 + 2.0**-7, -(1 + 2.0**-6)]
    assert decode(encode(patches, Scheme.BF16)).tolist() == [expected]


@settings(max_examples=200)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 2 * GROUP + 3)),
        elements=st.floats(-60000, 60000, width=32),
    ),
    st.sampled_from(RAW),
)
def test_any_tensor_of_ordinary_size_stays_within_the_bound(patches: FloatArray, scheme: Scheme) -> None:
    """Hypothesis favours zeros and subnormals, where a badly rounded scale would clip the largest element."""
    error = np.abs(decode(encode(patches, scheme)).astype(np.float64) - patches)
    assert (error <= error_bound(patches, scheme)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_of_zeros_come_back_as_zeros(scheme: Scheme) -> None:
    patches = np.zeros((3, GROUP + 6), np.float32)
    patches[1] = 2.0
    decoded = decode(encode(patches, scheme))
    assert not decoded[[0, 2]].any()
    np.testing.assert_allclose(decoded[1], 2.0, rtol=1e-3)


def test_an_outlier_costs_precision_only_in_its_own_row_or_group() -> None:
    patches = np.linspace(-1, 1, 2 * 2 * GROUP, dtype=np.float32).reshape(2, 2 * GROUP)
    patches[0, 3] = 1e4
    error = np.abs(patches - decode(encode(patches, Scheme.INT8)))
    assert error[1].max() <= 1 / 127 / 2 * 1.001
    error = np.abs(patches - decode(encode(patches, Scheme.INT4)))
    assert error[0, GROUP:].max() <= 1 / 7 / 2 * 1.001


@pytest.mark.parametrize("magnitude", [F32.smallest_subnormal, 3e-44, F32.tiny, 3e-8, 1e-7, 65504.0, 65504.0 * 7])
@pytest.mark.parametrize("scheme", [Scheme.INT8, Scheme.INT4])
def test_scales_of_any_magnitude_hold_the_largest_element(scheme: Scheme, magnitude: float) -> None:
    patches = np.array([[magnitude, -magnitude, magnitude / 3, 0.0]], np.float32)
    error = np.abs(decode(encode(patches, scheme)).astype(np.float64) - patches)
    assert (error <= error_bound(patches, scheme)).all()


def test_the_codes_minus_128_and_minus_8_are_never_written() -> None:
    patches = -np.abs(heavy_tailed((64, 2 * GROUP)))
    codes = np.frombuffer(encode(patches, Scheme.INT8).data[:-4], np.int8, offset=64 * 4)
    assert codes.min() == -127
    packed = np.frombuffer(encode(patches, Scheme.INT4).data[:-4], np.uint8, offset=64 * 2 * 2)
    assert 8 not in np.stack((packed & 15, packed >> 4))


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_non_finite_element_is_refused_with_its_place(scheme: Scheme, value: float) -> None:
    patches = np.ones((3, 100), np.float32)
    patches[2, 97] = value
    with pytest.raises(CodecError, match="row 2, column 97"):
        encode(patches, scheme)


@pytest.mark.parametrize("pattern", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
def test_a_nan_that_bfloat16_rounding_would_turn_finite_is_refused(pattern: int) -> None:
    patches = np.array([[1, pattern]], np.uint32).view(np.float32)
    with pytest.raises(CodecError, match="column 1"):
        encode(patches, Scheme.BF16)


@pytest.mark.parametrize(
    ("scheme", "value", "remedy"),
    [
        (Scheme.F16, 65520.0, "send bf16"),
        (Scheme.F16_ZSTD, -1e9, "send bf16"),
        (Scheme.BF16, float(F32.max), "send f32"),
        (Scheme.INT8, float(F32.max), "send f32"),
        (Scheme.INT4, 65520.0 * 7, "send int8"),
        (Scheme.INT4_ZSTD, -1e30, "send int8"),
    ],
)
def test_an_element_beyond_the_scheme_is_refused_and_never_becomes_infinity(
    scheme: Scheme, value: float, remedy: str
) -> None:
    with pytest.raises(CodecError, match=remedy):
        encode(np.array([[1.0, value]], np.float32), scheme)


def test_the_largest_float16_is_still_carried() -> None:
    assert decode(encode(np.array([[65504.0, -65519.0]], np.float32), Scheme.F16)).tolist() == [[65504.0, -65504.0]]


@pytest.mark.parametrize(
    "patches",
    [np.ones(4, np.float32), np.ones((2, 2), np.float64), np.ones((0, 4), np.float32), np.ones((1, 2, 2), np.float32)],
    ids=["vector", "float64", "empty", "three axes"],
)
def test_an_array_that_is_no_float32_matrix_is_refused(patches: FloatArray) -> None:
    with pytest.raises(CodecError, match="expected float32"):
        encode(patches, Scheme.INT8)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_memory_order_of_the_input_does_not_matter(scheme: Scheme) -> None:
    patches = heavy_tailed((70, 130))
    expected = encode(patches, scheme)
    assert encode(np.asfortranarray(patches), scheme) == expected
    assert encode(np.repeat(patches, 2, axis=1)[:, ::2], scheme) == expected
    assert encode(patches.astype(">f4").astype(np.float32), scheme) == expected


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_input_is_left_as_it_was(scheme: Scheme) -> None:
    patches = heavy_tailed((4, 65))
    before = patches.copy()
    encode(patches, scheme)
    np.testing.assert_array_equal(patches, before)


def test_every_scheme_has_a_codec() -> None:
    assert {*SCHEMES, *TRANSFORM_SCHEMES} == set(Scheme)


@pytest.mark.parametrize(
    ("scheme", "size"),
    [
        (Scheme.F32, 4_194_304),
        (Scheme.F16, 2_097_152),
        (Scheme.BF16, 2_097_152),
        (Scheme.INT8, 1_049_600),
        (Scheme.INT4, 557_056),
    ],
)
def test_the_body_of_one_openvla_camera_has_the_documented_size(scheme: Scheme, size: int) -> None:
    assert encoded_size(scheme, (256, 4096)) == size == encoded_size(zstd_of(scheme), (256, 4096))


@pytest.mark.parametrize("scheme", RAW)
def test_the_sizes_in_the_wire_reference_are_the_codec_s(scheme: Scheme) -> None:
    size = max_payload_bytes(scheme, (256, 4096))
    times = " | ".join(f"{size * 8 / rate / 1e3:,.0f} ms" for rate in (10, 50, 100))
    assert f"| `{scheme.name}` | {size:,} | {times} |" in WIRE_REFERENCE.read_text(encoding="utf-8")


@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (5, 65), (2, 64), (256, 96)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_payload_sizes_are_as_announced(scheme: Scheme, shape: tuple[int, int]) -> None:
    """Random bits are the worst case for zstd; their exponents are bounded to stay finite in every scheme."""
    bits = np.random.default_rng(1).integers(0, 1 << 32, shape, dtype=np.uint32)
    noise = ((bits & 0x807FFFFF) | 0x3F800000).view(np.float32)
    size = len(encode(noise, scheme).data)
    assert size <= max_payload_bytes(scheme, shape)
    if scheme in RAW:
        assert size == encoded_size(scheme, shape) + 4 == max_payload_bytes(scheme, shape)


@pytest.mark.parametrize("scheme", [0, 6, 99, None])
def test_an_unknown_scheme_is_a_codec_error(scheme: Scheme) -> None:
    with pytest.raises(CodecError, match="unknown"):
        encode(np.ones((1, 1), np.float32), scheme)
    with pytest.raises(CodecError, match="unknown"):
        decode(EncodedTensor(scheme, (1, 1), b""))


@pytest.mark.parametrize("name", ["int8_zstd", "INT8_ZSTD", " int8-zstd ", "Int8+zstd"])
def test_a_scheme_is_found_by_the_name_a_person_writes(name: str) -> None:
    assert parse_scheme(name) is Scheme.INT8_ZSTD


def test_a_misspelt_scheme_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean int8_zstd"):
        parse_scheme("int8_zst")
    with pytest.raises(ConfigError, match="one of f32, f16"):
        parse_scheme("jpeg")
