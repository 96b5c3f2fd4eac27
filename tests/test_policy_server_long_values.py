"""What the policy server says of a client's value that is far too long: its kind and length, never the value."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from splitvla_edge.policy_server.numpy_msgpack import pack
from splitvla_edge.policy_server.openpi import read_observation
from splitvla_edge.policy_server.openvla import read_call
from splitvla_edge.policy_server.request import ActionRequest, check_key, shown
from splitvla_shared.errors import CodecError, ObservationError

IMAGE = np.zeros((6, 5, 3), np.uint8)


def _image(**changes: Any) -> bytes:
    array = {"__numpy__": base64.b64encode(IMAGE.tobytes()).decode(), "dtype": "|u1", "shape": [6, 5, 3]} | changes
    return json.dumps({"image": array, "instruction": "go"}).encode()


LONG = "\U0001f600" * 1_000_000


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (read_call, _image(dtype=LONG)),
        (read_call, _image(dtype=[LONG])),
        (read_call, _image(shape=LONG)),
        (read_call, _image(shape=[LONG])),
        (read_observation, pack({"image": {b"__ndarray__": True, b"dtype": LONG}, "prompt": "go"})),
        (read_observation, pack({"image": {b"__ndarray__": True, b"dtype": [LONG]}, "prompt": "go"})),
        (read_observation, pack({"image": {b"__ndarray__": True, b"dtype": "|u1", b"shape": LONG}, "prompt": "go"})),
        (
            read_observation,
            pack({"image": {b"__ndarray__": True, b"dtype": "|u1", b"shape": [[LONG]]}, "prompt": "go"}),
        ),
        (read_observation, pack({LONG: IMAGE, "prompt": "go"})),
        (read_observation, pack({f"key {i}": 1 for i in range(2000)} | {"prompt": "go"})),
    ],
)
def test_an_error_about_a_long_value_is_short(read: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises((ObservationError, CodecError)) as raised:
        read(data)
    assert len(str(raised.value)) < 500


def test_an_error_about_a_long_key_is_short() -> None:
    with pytest.raises(ObservationError, match="a str of 1000000 is not") as raised:
        check_key(ActionRequest((IMAGE,), "go", LONG), "libero")
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "True"),
        (1.5, "1.5"),
        ("<f4", "'<f4'"),
        ([6, 5, 3, 1], "[6, 5, 3, 1]"),
        ([0] * 9, "a list of 9"),
        ([[0]], "a list of 1"),
        ({"a": 1}, "a dict of 1"),
        (b"x" * 65, "a bytes of 65"),
        (np.array(3), "a ndarray"),
    ],
)
def test_short_plain_values_are_shown_and_others_described(value: Any, text: str) -> None:
    assert shown(value) == text
