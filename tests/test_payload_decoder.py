"""Requests to patches on the server: the reference named, of this session, or no patches at all."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from splitvla_cloud.payloads import PayloadDecoder
from splitvla_cloud.references import MAX_FRAMES, ReferenceStore
from splitvla_shared import codec
from splitvla_shared.codec.model import Reference
from splitvla_shared.codec.transform import Binding, TransformCodec
from splitvla_shared.errors import CodecError, KeyFrameNeeded
from splitvla_shared.messages import tensor_to_message
from splitvla_shared.nouns import EncodedTensor, FloatArray, Scheme
from splitvla_shared.wire import inference_pb2 as pb
from tests.codec_rig import SPEC, TABLES
from tests.codec_tables import COLUMNS, ROWS, formula_coefficients

CODEC = TransformCodec(TABLES)
LARGEST = CODEC._most_bytes


class Robot:
    """Sends frames that build on the frame it is told to. Mutable: its references by sequence."""

    def __init__(self, session: int = 7, rung: int = 0) -> None:
        self.session, self.rung = session, rung
        self.sent: dict[int, list[Reference]] = {}

    def frame(self, sequence: int, *values: int, on: int | None = None) -> pb.InferRequest:
        cameras, references = [], []
        for index, value in enumerate(values or (sequence,)):
            known = None if on is None else self.sent[on][index]
            binding = Binding(self.session, sequence, index)
            coded = CODEC.encode(formula_coefficients(value), self.rung, binding, known)
            cameras.append(camera(coded.scheme, coded.data, coded.reference_sequence))
            references.append(coded.reference)
        self.sent[sequence] = references
        return pb.InferRequest(session=self.session, sequence=sequence, cameras=cameras)

    def patches(self, sequence: int) -> FloatArray:
        return np.concatenate([CODEC.reconstruct(each) for each in self.sent[sequence]])


def camera(scheme: Scheme, data: bytes, reference: int | None = None) -> pb.CameraEmbedding:
    tensor = EncodedTensor(scheme, TABLES.shape, data)
    return pb.CameraEmbedding(tensor=tensor_to_message(tensor), reference_sequence=reference)


@pytest.fixture
def store() -> ReferenceStore:
    return ReferenceStore()


@pytest.fixture
def decoder(store: ReferenceStore) -> PayloadDecoder:
    return PayloadDecoder(SPEC, TABLES, store)


def test_schemes_of_the_codec_are_offered_where_there_are_tables(
    decoder: PayloadDecoder, store: ReferenceStore
) -> None:
    assert set(decoder.schemes) == set(Scheme)
    plain = PayloadDecoder(SPEC, None, store)
    assert set(plain.schemes) == set(codec.SCHEMES)
    with pytest.raises(CodecError, match="calibrated"):
        plain.decode(Robot().frame(1))


def test_frames_that_arrive_in_another_order_are_what_they_were(decoder: PayloadDecoder) -> None:
    robot = Robot()
    frames = [robot.frame(1), *(robot.frame(sequence, on=1) for sequence in (2, 3, 4))]
    for index in (0, 3, 1, 2):
        np.testing.assert_array_equal(decoder.decode(frames[index]), robot.patches(index + 1))


def test_a_robot_whose_answers_are_lost_builds_on_the_last_frame_that_it_knows_of(decoder: PayloadDecoder) -> None:
    robot = Robot()
    decoder.decode(robot.frame(1))
    for sequence in range(2, 2 * MAX_FRAMES):
        np.testing.assert_array_equal(decoder.decode(robot.frame(sequence, on=1)), robot.patches(sequence))


def test_a_difference_from_a_frame_that_never_came_asks_for_a_key_frame(decoder: PayloadDecoder) -> None:
    robot = Robot()
    robot.frame(1)
    with pytest.raises(KeyFrameNeeded, match="frame 2: its reference, frame 1"):
        decoder.decode(robot.frame(2, on=1))


def test_a_reference_under_the_right_number_with_other_content_asks_for_a_key_frame(decoder: PayloadDecoder) -> None:
    """A robot that sent frame 1 twice, and a server that holds the first of them."""
    robot = Robot()
    decoder.decode(robot.frame(1, 11))
    robot.frame(1, 12)
    with pytest.raises(KeyFrameNeeded):
        decoder.decode(robot.frame(2, 13, on=1))


def test_another_session_s_payload_opens_nowhere_else(decoder: PayloadDecoder) -> None:
    one, two = Robot(session=1), Robot(session=2)
    for robot in (one, two):
        decoder.decode(robot.frame(1))
    stolen = one.frame(2, on=1)
    stolen.session = 2
    with pytest.raises(CodecError, match="another frame or session"):
        decoder.decode(stolen)


def test_cameras_that_changed_places_are_refused(decoder: PayloadDecoder) -> None:
    request = Robot().frame(1, 3, 4)
    first, second = request.cameras
    with pytest.raises(CodecError, match="CRC"):
        decoder.decode(pb.InferRequest(session=7, sequence=1, cameras=[second, first]))


def test_a_frame_of_which_one_camera_is_damaged_is_no_reference(decoder: PayloadDecoder, store: ReferenceStore) -> None:
    request = Robot().frame(1, 3, 4)
    damaged = pb.InferRequest()
    damaged.CopyFrom(request)
    damaged.cameras[1].tensor.data = damaged.cameras[1].tensor.data[:-1]
    with pytest.raises(CodecError):
        decoder.decode(damaged)
    assert (store.get(7, 1, 0), store.size) == (None, 0)
    decoder.decode(request)
    assert store.size == 2 * 4 * ROWS * COLUMNS


@pytest.mark.parametrize("named", [2, 3, 2**64 - 1])
def test_a_frame_that_builds_on_itself_or_on_a_later_one_is_refused(decoder: PayloadDecoder, named: int) -> None:
    robot = Robot()
    decoder.decode(robot.frame(1))
    request = robot.frame(2, on=1)
    request.cameras[0].reference_sequence = named
    with pytest.raises(CodecError, match="not an earlier one"):
        decoder.decode(request)


def test_cameras_may_be_of_different_schemes_and_only_whole_codec_frames_are_kept(
    decoder: PayloadDecoder, store: ReferenceStore
) -> None:
    request = Robot().frame(1, 3)
    plain = codec.encode(formula_coefficients(5), Scheme.F32)
    request.cameras.append(pb.CameraEmbedding(tensor=tensor_to_message(plain)))
    np.testing.assert_array_equal(decoder.decode(request)[ROWS:], formula_coefficients(5))
    assert store.size == 0


def hostile(request: pb.InferRequest) -> dict[str, Callable[[], pb.InferRequest]]:
    data, scheme = request.cameras[0].tensor.data, Scheme(request.cameras[0].tensor.scheme)
    reference = request.cameras[0].reference_sequence if scheme is Scheme.KLT_DELTA else None
    other = Scheme.KLT if scheme is Scheme.KLT_DELTA else Scheme.KLT_DELTA

    def of(*changed: pb.CameraEmbedding) -> Callable[[], pb.InferRequest]:
        return lambda: pb.InferRequest(session=7, sequence=request.sequence, cameras=changed)

    return {
        "empty": of(camera(scheme, b"", reference)),
        "largest of zeros": of(camera(scheme, bytes(LARGEST), reference)),
        "a bomb": of(camera(scheme, bytes(LARGEST + 1), reference)),
        "lying header": of(camera(scheme, data[:1] + b"\xff" * 7 + data[8:], reference)),
        "another rung": of(camera(scheme, bytes([data[0] ^ 1]) + data[1:], reference)),
        "the other scheme": of(camera(other, data, 1 if reference is None else None)),
        "twice": of(camera(scheme, data + data, reference)),
        "as plain zstd": of(camera(Scheme.F32_ZSTD, data)),
    }


@pytest.mark.parametrize("on", [None, 1])
def test_hostile_payloads_are_codec_errors_and_leave_no_trace(
    decoder: PayloadDecoder, store: ReferenceStore, on: int | None
) -> None:
    robot = Robot()
    decoder.decode(robot.frame(1))
    good, before = robot.frame(2, on=on), store.size
    for name, make in hostile(good).items():
        with pytest.raises(CodecError) as caught:
            decoder.decode(make())
        assert "\n" not in str(caught.value), name
    assert store.size == before
    np.testing.assert_array_equal(decoder.decode(good), robot.patches(2))


@settings(max_examples=300)
@given(st.data())
def test_any_change_of_a_request_gives_the_same_patches_a_refusal_or_the_wish_for_a_key_frame(
    data: st.DataObject,
) -> None:
    """Bytes of the whole message: lengths, tags, sequences and payloads alike."""
    robot, decoder = Robot(), PayloadDecoder(SPEC, TABLES, ReferenceStore())
    decoder.decode(robot.frame(1, 3, 4))
    wire = bytearray(robot.frame(2, 5, 6, on=1).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        request = pb.InferRequest.FromString(bytes(wire))
        patches = decoder.decode(request)
    except (DecodeError, CodecError, KeyFrameNeeded):
        return
    except ValueError:
        assert not request.cameras  # the service refuses a request without any before
        return
    whole = robot.patches(2)
    assert any(np.array_equal(patches, part) for part in (whole, whole[:ROWS], whole[ROWS:]))


def test_two_threads_decode_many_sessions_and_every_frame_is_its_own(decoder: PayloadDecoder) -> None:
    wrong: list[int] = []

    def drive(session: int) -> None:
        robot = Robot(session)
        for sequence in range(1, 60):
            request = robot.frame(sequence, sequence * session % 40, on=sequence - 1 or None)
            if not np.array_equal(decoder.decode(request), robot.patches(sequence)):
                wrong.append(session)

    threads = [threading.Thread(target=drive, args=(session,)) for session in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
