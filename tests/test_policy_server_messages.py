"""What the policy server makes of its clients' bytes: the very messages of both protocols, or an error, never more."""

from __future__ import annotations

import base64
import json
from typing import Any

import json_numpy
import msgpack
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitvla_edge.policy_server.numpy_msgpack import pack, unpack
from splitvla_edge.policy_server.openpi import FIRST_CAMERA_KEYS, Timing, read_observation, write_actions
from splitvla_edge.policy_server.openvla import ActCall, NotAnObject, read_call, write_action
from splitvla_edge.policy_server.request import ActionRequest, check_key
from splitvla_shared.errors import CodecError, ObservationError

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
ARRAY = json.loads(json_numpy.dumps(IMAGE))
ACTION = np.array([0.1, -1 / 3, 1e-300, 0.0, 5.0, -6.0, 1.0])
TIMING = Timing(12.5, 10.0)


def _body(**changes: Any) -> bytes:
    message = {"image": ARRAY, "instruction": "lift the pot", "unnorm_key": "bridge_orig"} | changes
    return json.dumps({name: value for name, value in message.items() if value is not ...}).encode()


def _image(**changes: Any) -> bytes:
    return _body(image=ARRAY | changes)


# --- OpenVLA's POST /act ----------------------------------------------------------------------------------------------


def test_the_request_of_openvlas_clients_is_read() -> None:
    body = json_numpy.dumps({"image": IMAGE, "instruction": "lift the pot", "unnorm_key": "k", "more": [1]}).encode()
    call = read_call(body)
    assert not call.double_encoded
    assert (call.request.instruction, call.request.unnorm_key) == ("lift the pot", "k")
    np.testing.assert_array_equal(call.request.images[0], IMAGE)


def test_the_key_may_be_left_out() -> None:
    assert read_call(_body(unnorm_key=...)).request.unnorm_key is None
    assert read_call(_body(unnorm_key=None)).request.unnorm_key is None


def test_a_request_that_is_encoded_twice_is_read_and_remembered() -> None:
    call = read_call(json.dumps({"encoded": _body().decode()}).encode())
    assert call.double_encoded
    np.testing.assert_array_equal(call.request.images[0], IMAGE)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4)], ids=["gray", "RGBA"])
def test_gray_and_rgba_become_rgb_as_in_the_reference(shape: tuple[int, ...]) -> None:
    pixels = np.full(shape, 200, np.uint8)
    (image,) = read_call(_body(image=json.loads(json_numpy.dumps(pixels)))).request.images
    assert image.shape == (6, 5, 3)
    assert (image == 200).all()


def test_the_action_is_what_json_numpy_would_have_written() -> None:
    written = write_action(ACTION, double_encoded=False)
    assert written == json.dumps(json.loads(json_numpy.dumps(ACTION)), separators=(",", ":")).encode()
    np.testing.assert_array_equal(json_numpy.loads(written), ACTION)


def test_the_action_for_a_double_encoded_request_is_json_in_json() -> None:
    written = write_action(ACTION, double_encoded=True)
    assert json.loads(written) == json_numpy.dumps(ACTION)
    np.testing.assert_array_equal(json_numpy.loads(json.loads(written)), ACTION)


@pytest.mark.parametrize("body", [b"", b"no json", b"[1]", b'"text"', b"3", b"null", b"\xff\xfe", b"[" * 4000])
def test_a_body_that_is_no_object_is_told_apart(body: bytes) -> None:
    with pytest.raises(NotAnObject, match="not a JSON object"):
        read_call(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (_body(image=...), "`image` is missing"),
        (_body(image=IMAGE.tolist()), "`image` is a list"),
        (_body(image="x"), "`image` is a str"),
        (_body(image=[[0] * 5000]), "thousands of JSON values"),
        (_body(instruction=...), "`instruction` is missing"),
        (_body(instruction=3), "`instruction` is a int"),
        (_body(unnorm_key=["bridge_orig"]), "`unnorm_key` is a list"),
        (_body(image=json.loads(json_numpy.dumps(IMAGE.astype(np.float32)))), r"dtype '<f4'"),
        (_image(dtype="|O"), r"dtype '\|O'"),
        (_image(dtype="|O8"), r"dtype '\|O8'"),
        (_image(dtype=[["a", "|u1"]]), "dtype a list of 1"),
        (_image(dtype="u1,u1"), "dtype"),
        (_image(shape=None), "shape None"),
        (_image(shape=[6, 5, 3, 1]), "shape"),
        (_image(shape=[-6, -5, 3]), "shape"),
        (_image(shape=[6, 5, True]), "shape"),
        (_image(shape=[6.0, 5, 3]), "shape"),
        (_image(shape=[0, 5, 3]), "shape"),
        (_image(shape=[1 << 40, 1 << 40, 3]), "characters of base64"),
        (_image(shape=[10**200, 10**200, 3]), "characters of base64"),
        (_image(shape=[6, 5, 4]), "characters of base64"),
        (_image(shape=[90]), r"image has shape \(90,\)"),
        (_image(shape=[6, 3, 5]), "image has shape"),
        (_image(__numpy__=3), "no characters"),
        (_image(__numpy__="!" * 120), "not base64"),
        (_image(__numpy__=base64.b64encode(bytes(89)).decode()), "89 bytes"),
        (json.dumps({"encoded": 3}).encode(), "`encoded`"),
        (json.dumps({"encoded": "{}", "image": 1}).encode(), "`encoded`"),
        (json.dumps({"encoded": "[1]"}).encode(), "`encoded` is not a JSON object"),
        (json.dumps({"encoded": "{"}).encode(), "`encoded` is not a JSON object"),
        (b'{"encoded": "{\\"image\\": \\u005b' + b"0\\u002c" * 5000 + b'0]}"}', "thousands of JSON values"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(body: bytes, reason: str) -> None:
    with pytest.raises((ObservationError, CodecError), match=reason) as raised:
        read_call(body)
    assert not isinstance(raised.value, NotAnObject)


def test_actions_are_only_given_in_the_units_that_are_served() -> None:
    request = ActionRequest((IMAGE,), "go", "bridge_orig")
    check_key(request, "bridge_orig")
    check_key(ActionRequest((IMAGE,), "go"), "bridge_orig")
    with pytest.raises(ObservationError, match=r"'bridge_orig' is not .* served, 'libero'; .*--unnorm-key"):
        check_key(request, "libero")


# --- msgpack with numpy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"])
def test_arrays_of_plain_numbers_come_back_as_they_were(dtype: str) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)
    back = unpack(pack({"a": array, "n": array[1, 2], "s": "text", "none": np.zeros((0, 3), dtype)}))
    np.testing.assert_array_equal(back["a"], array)
    assert (back["a"].dtype, back["a"].shape) == (array.dtype, (2, 3))
    assert (back["n"], back["s"], back["none"].shape) == (array[1, 2], "text", (0, 3))


def test_an_array_is_written_as_openpi_client_writes_it() -> None:
    written = msgpack.unpackb(pack({"image": IMAGE}))
    assert written["image"] == {
        b"__ndarray__": True,
        b"data": IMAGE.tobytes(),
        b"dtype": "|u1",
        b"shape": [6, 5, 3],
    }


@pytest.mark.parametrize("value", [np.array([None]), np.zeros(2, "c8"), np.zeros(2, ">f8"), np.array(["x"]), {1, 2}])
def test_what_is_not_plain_is_not_packed(value: Any) -> None:
    with pytest.raises(TypeError):
        pack({"a": value})


def _array(data: Any = b"\0" * 8, dtype: Any = "<f8", shape: Any = (1,)) -> bytes:
    packed: bytes = msgpack.packb({"a": {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}})
    return packed


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_array(dtype="|O"), "dtype"),
        (_array(dtype="O"), "dtype"),
        (_array(dtype="|V8"), "dtype"),
        (_array(dtype="<U2"), "dtype"),
        (_array(dtype="<c8"), "dtype"),
        (_array(dtype="<M8[s]"), "dtype"),
        (_array(dtype=">f8"), "dtype"),
        (_array(dtype="f8,O"), "dtype"),
        (_array(dtype=["<f8"]), "dtype"),
        (_array(dtype=None), "dtype"),
        (_array(shape=(2,)), "8 bytes"),
        (_array(shape=(-1,)), "shape"),
        (_array(shape=(True,)), "shape"),
        (_array(shape=(1.0,)), "shape"),
        (_array(shape=(1,) * 9), "shape"),
        (_array(shape="1"), "shape"),
        (_array(shape=(1 << 63, 1 << 63)), "8 bytes"),
        (_array(data=b"", shape=(0, 1 << 62, 1 << 62)), "that is none"),
        (_array(data="text"), "no bytes"),
        (_array(data=b"\0\1\2", dtype="|b1", shape=(3,)), "booleans"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}), "no number"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"data": "3", b"dtype": "|u1"}}), "a number is a str"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"data": 3, b"dtype": "|O"}}), "dtype"),
        (msgpack.packb([1]), "is a list"),
        (msgpack.packb({"a": [[]] * 1000}), "lists and maps"),
        (msgpack.packb({"a": [0] * 5000}), "not msgpack"),
        (msgpack.packb({"a": msgpack.ExtType(3, b"x")}), "not msgpack"),
        (msgpack.packb({3: 1}), "not msgpack"),
        (b"\x91" * 5000, "not msgpack"),
        (b"", "not msgpack"),
        (pack({}) + b"\0", "not msgpack"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "not msgpack"),
        (b"\xdf\xff\xff\xff\xff", "not msgpack"),
    ],
)
def test_a_message_of_anything_else_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        unpack(data)


# --- openpi's websocket -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", FIRST_CAMERA_KEYS)
def test_the_first_camera_is_found_under_the_names_that_programs_use(key: str) -> None:
    outer, _, inner = key.partition("/")
    observation = {inner: IMAGE} if outer == "images" else IMAGE
    message: dict[str, Any] = {outer if outer == "images" else key: observation, "prompt": "go", "state": np.zeros(8)}
    request = read_observation(pack(message))
    assert request.instruction == "go"
    np.testing.assert_array_equal(request.images[0], IMAGE)


def test_the_cameras_that_are_named_come_in_that_order() -> None:
    wrist = IMAGE[::-1].copy()
    data = pack({"observation": {"wrist": wrist}, "base": IMAGE, "image": wrist, "prompt": "go"})
    images = read_observation(data, ("base", "observation/wrist")).images
    np.testing.assert_array_equal(images[0], IMAGE)
    np.testing.assert_array_equal(images[1], wrist)


@pytest.mark.parametrize(
    "sent",
    [IMAGE, IMAGE.transpose(2, 0, 1), IMAGE / np.float32(255), (IMAGE / np.float32(255)).transpose(2, 0, 1)],
    ids=["HWC", "CHW", "float HWC", "float CHW"],
)
def test_a_picture_is_taken_as_openpi_takes_it(sent: npt.NDArray[Any]) -> None:
    (image,) = read_observation(pack({"image": sent, "prompt": b"go"})).images
    assert (image.dtype, image.shape) == (np.dtype(np.uint8), IMAGE.shape)
    expected = IMAGE if sent.dtype == np.uint8 else (255 * (IMAGE / np.float32(255))).astype(np.uint8)
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"image": IMAGE}, "`prompt` is missing"),
        ({"image": IMAGE, "prompt": 3}, "`prompt` is missing or no text"),
        ({"prompt": "go", "picture": IMAGE}, r"it holds picture, prompt.*--cameras"),
        ({"prompt": "go", "image": IMAGE, "full_image": IMAGE}, r"several pictures, image, full_image.*--cameras"),
        ({"prompt": "go", "image": "x"}, "'image' is a str"),
        ({"prompt": "go", "image": IMAGE.astype(np.int32)}, "int32"),
        ({"prompt": "go", "image": IMAGE.astype(np.float64)}, r"floats outside 0\.\.1"),
        ({"prompt": "go", "image": np.full((2, 2, 3), np.nan)}, r"floats outside 0\.\.1"),
        ({"prompt": "go", "image": np.zeros((0, 2, 3))}, r"floats outside 0\.\.1"),
        ({"prompt": "go", "image": np.zeros((0, 2, 3), np.uint8)}, "empty"),
        ({"prompt": "go", "image": IMAGE[None]}, "shape"),
    ],
)
def test_an_observation_that_no_model_could_take_is_named(message: dict[str, Any], reason: str) -> None:
    with pytest.raises(ObservationError, match=reason):
        read_observation(pack(message))


def test_a_camera_that_was_named_and_is_not_there_is_said() -> None:
    with pytest.raises(ObservationError, match=r"'observation/wrist' is missing"):
        read_observation(pack({"observation": 3, "prompt": "go"}), ("observation/wrist",))


def test_actions_are_a_chunk_with_the_times_that_openpi_reports() -> None:
    reply = unpack(write_actions(ACTION[None], TIMING))
    np.testing.assert_array_equal(reply["actions"], ACTION[None])
    assert reply["actions"].dtype == np.float64
    assert reply["server_timing"] == {"infer_ms": 12.5}
    assert reply["policy_timing"] == {"infer_ms": 10.0}
    later = unpack(write_actions(ACTION[None], Timing(12.5, 10.0, 14.0)))
    assert later["server_timing"] == {"infer_ms": 12.5, "prev_total_ms": 14.0}


# --- whatever comes ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["image", "instruction", "unnorm_key", "encoded", "__numpy__", "dtype", "shape"])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=8) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape", "image", "prompt"])
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def _is_a_request(request: ActionRequest) -> bool:
    shapes = all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for image in request.images)
    return shapes and isinstance(request.instruction, str)


def _read(body: bytes) -> ActCall | None:
    try:
        return read_call(body)
    except (ObservationError, CodecError):
        return None


@settings(max_examples=300)
@given(body=st.binary(max_size=64) | st.dictionaries(KEYS, JSON, max_size=5).map(lambda m: json.dumps(m).encode()))
def test_any_body_becomes_a_request_or_an_error(body: bytes) -> None:
    call = _read(body)
    assert call is None or _is_a_request(call.request)


@settings(max_examples=300)
@given(
    shape=JSON,
    dtype=JSON | st.just("|u1"),
    data=JSON | st.binary(max_size=60).map(lambda b: base64.b64encode(b).decode()),
)
def test_any_array_of_json_becomes_a_request_or_an_error(shape: Any, dtype: Any, data: Any) -> None:
    call = _read(_body(image={"__numpy__": data, "dtype": dtype, "shape": shape}))
    assert call is None or _is_a_request(call.request)


@settings(max_examples=300)
@given(cut=st.integers(0, 400), flip=st.integers(0, 255), at=st.integers(0, 400))
def test_a_damaged_body_becomes_a_request_or_an_error(cut: int, flip: int, at: int) -> None:
    body = bytearray(_body()[: cut or None])
    if at < len(body):
        body[at] ^= flip
    call = _read(bytes(body))
    assert call is None or _is_a_request(call.request)


@settings(max_examples=300)
@given(data=st.binary(max_size=64) | PLAIN.map(msgpack.packb))
def test_any_message_becomes_a_request_or_an_error(data: bytes) -> None:
    try:
        request = read_observation(data)
    except (ObservationError, CodecError):
        return
    assert _is_a_request(request)


@settings(max_examples=300)
@given(
    shape=st.lists(st.integers(-1, 9), max_size=9) | PLAIN,
    dtype=st.sampled_from(["|u1", "<f4", "|b1", "|O", "<f8"]) | PLAIN,
    data=st.binary(max_size=40) | PLAIN,
)
def test_any_array_of_msgpack_becomes_plain_numbers_or_an_error(shape: Any, dtype: Any, data: Any) -> None:
    try:
        array = unpack(_array(data, dtype, shape))["a"]
    except CodecError:
        return
    assert array.dtype.kind in "bifu"
    assert array.nbytes == len(data)
