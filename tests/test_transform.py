"""The KLT schemes: golden bytes, closed loop without drift, and hostile payloads."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitvla_shared.codec.model import DEAD_ZONE, Reference
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.codec.tokens import MAX_MAGNITUDE, PAIR_CAP, Detokenizer, Grouping, tokenize
from splitvla_shared.codec.transform import Binding, Coded, TransformCodec
from splitvla_shared.errors import BundleError, CodecError, KeyFrameNeeded
from splitvla_shared.nouns import Scheme
from tests.codec_tables import COLUMNS, GROUPING, ROWS, formula_coefficients, formula_tables

TABLES = formula_tables()
CODEC = TransformCodec(TABLES)
FIRST, SECOND = Binding(7, 1), Binding(7, 2)

# SHA-256 of the bodies (without CRC-32, which holds the tables' hash) of two frames of `formula_coefficients`. They
# are what robots and servers in the field send each other: a change needs a new scheme number, never a new value here.
GOLDEN_BODIES = {
    Scheme.KLT: (169, "65e4025904586b906af059030fe4009257bcbfbca6ac606fec0dff5d339f92eb"),
    Scheme.KLT_DELTA: (106, "0731dd9eb650d6cbd56cc1a73f480d138893c0778135801f2fb6ee7ea54600b5"),
}


def pair(rung: int = 0) -> tuple[Coded, Coded]:
    """A key frame and the frame after it."""
    key = CODEC.encode(formula_coefficients(0), rung, FIRST)
    return key, CODEC.encode(formula_coefficients(1), rung, SECOND, key.reference)


def decode_second(data: bytes, reference: Reference | None, binding: Binding = SECOND) -> Reference:
    return CODEC.decode(data, Scheme.KLT_DELTA, binding, reference, 1)


def resealed(body: bytes, scheme: Scheme, binding: Binding, reference_sequence: int = 0) -> bytes:
    """`body` under a flawless checksum, so that only the body itself can be at fault."""
    return body + zlib.crc32(body, CODEC._bound(scheme, binding, reference_sequence)).to_bytes(4, "little")


def test_a_key_and_a_predicted_frame_give_the_golden_bytes() -> None:
    for coded in pair():
        body = coded.data[:-4]
        assert (len(body), hashlib.sha256(body).hexdigest()) == GOLDEN_BODIES[coded.scheme]


def test_both_sides_hold_the_same_numbers() -> None:
    key, second = pair()
    got = CODEC.decode(key.data, Scheme.KLT, FIRST)
    assert (got.checksum, got.sequence) == (key.reference.checksum, 1)
    np.testing.assert_array_equal(got.numbers, key.reference.numbers)
    np.testing.assert_array_equal(decode_second(second.data, got).numbers, second.reference.numbers)


@pytest.mark.parametrize("rung", [0, 1])
def test_the_error_of_a_coefficient_is_bounded_by_the_step_also_a_thousand_times_the_rest(rung: int) -> None:
    step = TABLES.rungs[rung].step
    for coded, frame in zip(pair(rung), (0, 1), strict=True):
        error = np.abs(CODEC.reconstruct(coded.reference) - formula_coefficients(frame))
        assert error.max() <= DEAD_ZONE * step + 1e-3


def test_a_thousand_predicted_frames_do_not_drift() -> None:
    rng = np.random.default_rng(0)
    coefficients = formula_coefficients()
    sent: Reference | None = None
    held: Reference | None = None
    deltas = 0
    for sequence in range(1, 1001):
        coefficients = (coefficients + rng.normal(0, 0.1, coefficients.shape)).astype(np.float32)
        binding = Binding(7, sequence)
        coded = CODEC.encode(coefficients, 1, binding, sent)
        held = CODEC.decode(coded.data, coded.scheme, binding, held, coded.reference_sequence)
        sent = coded.reference
        deltas += coded.scheme is Scheme.KLT_DELTA
        assert held.checksum == sent.checksum
        assert np.abs(CODEC.reconstruct(held) - coefficients).max() <= DEAD_ZONE * TABLES.rungs[1].step + 1e-3
    assert deltas > 900


def test_a_scene_that_jumps_is_sent_as_a_key_frame_although_there_is_a_reference() -> None:
    key, _ = pair()
    assert CODEC.encode(-0.5 * formula_coefficients(0), 0, SECOND, key.reference).scheme is Scheme.KLT


def test_a_reference_of_another_rung_is_not_used() -> None:
    key, _ = pair()
    assert CODEC.encode(formula_coefficients(1), 1, SECOND, key.reference).scheme is Scheme.KLT


def test_without_the_very_reference_a_key_frame_is_asked_for() -> None:
    key, second = pair()
    held = CODEC.decode(key.data, Scheme.KLT, FIRST)
    other = Reference.of(1, 0, held.numbers + 1)
    renamed = Reference.of(5, 0, held.numbers)
    for reference in (None, other, renamed):
        with pytest.raises(KeyFrameNeeded):
            decode_second(second.data, reference)


@pytest.mark.parametrize(
    ("binding", "reference_sequence"),
    [(Binding(8, 2), 1), (Binding(7, 3), 1), (Binding(7, 2, 1), 1), (Binding(7, 2), 2), (Binding(7, 2), None)],
)
def test_a_payload_opens_for_no_other_session_frame_camera_or_reference(
    binding: Binding, reference_sequence: int | None
) -> None:
    key, second = pair()
    with pytest.raises(CodecError):
        CODEC.decode(second.data, Scheme.KLT_DELTA, binding, key.reference, reference_sequence)
    with pytest.raises(CodecError):
        CODEC.decode(key.data, Scheme.KLT, binding)


def test_another_calibration_s_payload_is_refused() -> None:
    other = TransformCodec(formula_tables((0.25, 2.0)))
    with pytest.raises(CodecError, match="CRC"):
        other.decode(pair()[0].data, Scheme.KLT, FIRST)


@pytest.mark.parametrize("scheme", [Scheme.KLT, Scheme.KLT_DELTA])
def test_every_flipped_byte_and_every_cut_is_refused(scheme: Scheme) -> None:
    key, second = pair()
    coded, binding = (key, FIRST) if scheme is Scheme.KLT else (second, SECOND)
    data, sequence = coded.data, coded.reference_sequence
    damaged = [data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :] for i in range(len(data))]
    for bad in [*damaged, *(data[:i] for i in range(len(data))), data + b"\0"]:
        with pytest.raises(CodecError):
            CODEC.decode(bad, scheme, binding, key.reference, sequence)


def test_swapping_the_rung_under_a_good_checksum_is_refused() -> None:
    key, second = pair()
    for rung in (1, 2, 255):
        body = bytes([rung]) + second.data[1:-4]
        with pytest.raises(CodecError, match="of rung"):
            decode_second(resealed(body, Scheme.KLT_DELTA, SECOND, 1), key.reference)
    with pytest.raises(CodecError, match="of rung"):
        CODEC.decode(resealed(bytes([2]) + key.data[1:-4], Scheme.KLT, FIRST), Scheme.KLT, FIRST)


@settings(max_examples=200)
@given(st.data())
def test_forged_bodies_under_a_good_checksum_are_numbers_or_a_codec_error(data: st.DataObject) -> None:
    key, second = pair()
    delta = data.draw(st.booleans())
    source, binding, sequence = (second, SECOND, 1) if delta else (key, FIRST, 0)
    body = bytearray(source.data[:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(5 if delta else 0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 8))
    body = body[: len(body) - cut] + data.draw(st.binary(max_size=8))
    sealed = resealed(bytes(body), source.scheme, binding, sequence)
    try:
        got = CODEC.decode(sealed, source.scheme, binding, key.reference, sequence or None)
    except CodecError:
        return
    assert got.numbers.shape == (ROWS, COLUMNS)
    assert np.abs(got.numbers).max() <= MAX_MAGNITUDE
    assert np.isfinite(CODEC.reconstruct(got)).all()


@settings(max_examples=200)
@given(st.binary(max_size=400), st.booleans())
def test_random_bodies_under_a_good_checksum_are_numbers_or_a_codec_error(body: bytes, delta: bool) -> None:
    scheme, sequence = (Scheme.KLT_DELTA, 1) if delta else (Scheme.KLT, None)
    reference = pair()[0].reference
    body = bytes([0]) + (reference.checksum.to_bytes(4, "little") if delta else b"") + body
    try:
        got = CODEC.decode(resealed(body, scheme, SECOND, sequence or 0), scheme, SECOND, reference, sequence)
    except CodecError:
        return
    assert got.numbers.shape == (ROWS, COLUMNS)


def test_a_header_that_declares_millions_of_words_is_refused_before_anything_is_made() -> None:
    body = bytes([0]) + b"\xff\xff\xff" + bytes(100)
    with pytest.raises(CodecError, match="declares 16777215 words"):
        CODEC.decode(resealed(body, Scheme.KLT, FIRST), Scheme.KLT, FIRST)


@pytest.mark.parametrize("scheme", [Scheme.KLT, Scheme.KLT_DELTA])
def test_a_number_beyond_what_an_encoder_writes_is_refused(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest excess lies on top of what a pair's token says, so that a forged frame can say seven more."""
    monkeypatch.setattr("splitvla_shared.codec.tokens.MAX_MAGNITUDE", MAX_MAGNITUDE + PAIR_CAP)
    numbers = np.zeros((ROWS, COLUMNS), np.int32)
    numbers[3, GROUPING.singles] = MAX_MAGNITUDE + PAIR_CAP
    key = Reference.of(1, 0, np.zeros((ROWS, COLUMNS), np.int32))
    used, sequence = (None, None) if scheme is Scheme.KLT else (key, 1)
    data = resealed(CODEC._write(numbers, 0, used), scheme, SECOND, sequence or 0)
    with pytest.raises(CodecError, match="range that an encoder keeps to"):
        CODEC.decode(data, scheme, SECOND, used, sequence)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_coefficients_that_no_table_can_say_are_refused_by_the_sender(value: float) -> None:
    coefficients = formula_coefficients()
    coefficients[3, 3] = value
    with pytest.raises(CodecError, match="exact"):
        CODEC.encode(coefficients, 0, FIRST)


@settings(max_examples=60)
@given(st.data())
def test_numbers_of_any_size_come_back_from_tokens(data: st.DataObject) -> None:
    grouping = Grouping(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scale = data.draw(st.sampled_from((0.3, 3.0, 1000.0, 1e5)))
    numbers = np.clip(np.rint(rng.laplace(size=(5, grouping.columns)) * scale), -MAX_MAGNITUDE, MAX_MAGNITUDE)
    tokens = tokenize(numbers.astype(np.int32), np.abs(numbers).astype(np.int32), grouping)
    back = Detokenizer(tokens.first, grouping)
    assert back.bits_needed(tokens.excess) == len(tokens.bits)
    np.testing.assert_array_equal(back.numbers(tokens.bits), numbers)


def test_tables_survive_their_file_and_damage_is_a_bundle_error() -> None:
    data = TABLES.to_bytes()
    again = CodecTables.from_bytes(data)
    assert again.sha256 == TABLES.sha256 == hashlib.sha256(data).hexdigest()
    assert again.rungs[0].grouping == GROUPING
    for bad in (b"", data[:100], data[: len(data) // 2], b"PK" + bytes(50)):
        with pytest.raises(BundleError):
            CodecTables.from_bytes(bad)


def test_a_small_rung_carries_a_frame_that_is_louder_than_all_that_were_calibrated_with() -> None:
    codec = TransformCodec(formula_tables())
    loud = np.full((ROWS, COLUMNS), 12.0, np.float32)  # every number of a quad is beyond what its token says
    coded = codec.encode(loud, 1, Binding(1, 1))
    assert np.array_equal(codec.decode(coded.data, coded.scheme, Binding(1, 1)).numbers, loud.astype(np.int32))
