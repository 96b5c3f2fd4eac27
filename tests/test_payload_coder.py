"""What the robot builds a payload on: only a frame whose action came back, from that very server."""

from __future__ import annotations

import pytest

from splitvla_edge.link.calls import CameraPayload
from splitvla_edge.payloads import FrameId, PayloadCoder
from splitvla_shared.codec import decode
from splitvla_shared.errors import CodecError, ConfigError
from splitvla_shared.nouns import Scheme
from splitvla_shared.rungs import Rung
from tests.codec_tables import formula_coefficients, formula_tables

TABLES = formula_tables()
FINE, COARSE = Rung("fine", Scheme.KLT, 200, codec_rung=0), Rung("coarse", Scheme.KLT, 100, codec_rung=1)


@pytest.fixture
def coder() -> PayloadCoder:
    return PayloadCoder(TABLES)


def send(coder: PayloadCoder, sequence: int, server: str | None = "a:1", rung: Rung = FINE) -> CameraPayload:
    (payload,) = coder.encode([formula_coefficients(sequence)], rung, FrameId(7, sequence), server)
    return payload


def test_a_frame_builds_on_the_last_one_that_was_acknowledged(coder: PayloadCoder) -> None:
    assert (send(coder, 1).tensor.scheme, send(coder, 2).reference_sequence) == (Scheme.KLT, None)
    coder.acknowledge("a:1", 2)
    third = send(coder, 3)
    assert (third.tensor.scheme, third.reference_sequence) == (Scheme.KLT_DELTA, 2)
    assert send(coder, 4).reference_sequence == 2, "frame 3 has no answer"


def test_an_answer_to_a_frame_that_is_long_gone_acknowledges_nothing(coder: PayloadCoder) -> None:
    for sequence in range(1, 6):
        send(coder, sequence)
    coder.acknowledge("a:1", 1)
    assert send(coder, 6).reference_sequence is None


def test_every_server_has_its_own_references(coder: PayloadCoder) -> None:
    send(coder, 1)
    coder.acknowledge("a:1", 1)
    assert send(coder, 2, "b:2").reference_sequence is None
    coder.acknowledge("b:2", 2)
    assert (send(coder, 3, "a:1").reference_sequence, send(coder, 3, "b:2").reference_sequence) == (1, 2)


@pytest.mark.parametrize("server", ["a:1", None])
def test_what_is_forgotten_makes_a_key_frame(coder: PayloadCoder, server: str | None) -> None:
    send(coder, 1)
    coder.acknowledge("a:1", 1)
    coder.forget(server)
    assert send(coder, 2).reference_sequence is None


def test_the_key_frame_that_takes_a_difference_s_place_is_what_its_answer_acknowledges(coder: PayloadCoder) -> None:
    send(coder, 1)
    coder.acknowledge("a:1", 1)
    assert send(coder, 2).reference_sequence == 1
    assert send(coder, 3, None).reference_sequence is None
    coder.acknowledge("a:1", 3)
    assert send(coder, 4).reference_sequence == 3


def test_another_rung_stands_alone_and_a_plain_frame_leaves_the_references_as_they_are(coder: PayloadCoder) -> None:
    send(coder, 1)
    coder.acknowledge("a:1", 1)
    assert send(coder, 2, rung=COARSE).reference_sequence is None
    plain = send(coder, 3, rung=Rung("f32", Scheme.F32, 0))
    assert decode(plain.tensor).tolist() == formula_coefficients(3).tolist()
    coder.acknowledge("a:1", 3)
    assert send(coder, 4).reference_sequence == 1


def test_each_camera_builds_on_itself_and_one_that_is_new_stands_alone(coder: PayloadCoder) -> None:
    one, two = formula_coefficients(1), formula_coefficients(2)
    coder.encode([one], FINE, FrameId(7, 1), "a:1")
    coder.acknowledge("a:1", 1)
    first, second = coder.encode([one, two], FINE, FrameId(7, 2), "a:1")
    assert (first.reference_sequence, second.reference_sequence) == (1, None)
    assert (first.camera, second.camera) == ("camera0", "camera1")


def test_a_thousand_frames_without_an_answer_leave_two_pending(coder: PayloadCoder) -> None:
    for sequence in range(1, 1001):
        send(coder, sequence)
    assert len(coder._pending) == 2


def test_a_frame_beyond_the_tables_is_refused_and_is_no_reference(coder: PayloadCoder) -> None:
    wild = formula_coefficients(1)
    wild[0, 0] = 1e30
    with pytest.raises(CodecError):
        coder.encode([formula_coefficients(1), wild], FINE, FrameId(7, 1), "a:1")
    coder.acknowledge("a:1", 1)
    assert send(coder, 2).reference_sequence is None


def test_a_codec_rung_without_tables_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="rung fine needs codec tables"):
        send(PayloadCoder(None), 1)
