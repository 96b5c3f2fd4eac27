"""`POST /act` as OpenVLA's deploy.py answers it: a JSON object in, an array of float64 out, both as json_numpy.

Source: vla-scripts/deploy.py of openvla/openvla and the json_numpy package, whose bytes these are. In either direction
the message may be encoded twice: a JSON string in the place of the object, for clients that do not patch their JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitvla_edge.policy_server.request import ActionRequest, shown
from splitvla_shared.errors import CodecError, ObservationError
from splitvla_shared.nouns import ActionArray, Image
from splitvla_shared.preprocess.images import check_image

# deploy.py's answer to whatever went wrong, with status 200.
ERROR = b'"error"'
_IMAGE_DTYPE = "|u1"
_MAX_DIMS = 3
# The base64 of an image holds none of these, so a message of few values has few; lists cost far more than their bytes.
_MAX_VALUES = 4096
_VALUE_MARKS = "[{,"


class NotAnObject(ObservationError):  # noqa: N818 - what it is, in one word
    """The body is no JSON object, which a client of FastAPI is told with status 422."""


@dataclass(frozen=True, slots=True)
class ActCall:
    """double_encoded: the request was, and so the answer is to be."""

    request: ActionRequest
    double_encoded: bool


def read_call(body: bytes) -> ActCall:
    """Raises NotAnObject, ObservationError, or CodecError when an array is not what it says."""
    message = _object(body)
    if message is None:
        raise NotAnObject("the body is not a JSON object; send {image, instruction, unnorm_key}")
    double_encoded = "encoded" in message
    if double_encoded:
        inner = message["encoded"]
        if len(message) > 1 or not isinstance(inner, str):
            raise ObservationError("`encoded` is not the only key, or no text; send {encoded: json_numpy.dumps(...)}")
        message = _object(inner)  # whose marks may be escaped in the outer text
        if message is None:
            raise ObservationError("what is `encoded` is not a JSON object; send json_numpy.dumps of a dict")
    return ActCall(_read_request(message), double_encoded)


def write_action(action: ActionArray, double_encoded: bool) -> bytes:
    """float64 (dims,) as the body of the reply."""
    data = base64.b64encode(action.astype("<f8").tobytes()).decode()
    message = {"__numpy__": data, "dtype": "<f8", "shape": list(action.shape)}
    if double_encoded:
        return json.dumps(json.dumps(message)).encode()
    return json.dumps(message, separators=(",", ":")).encode()


def _object(text: bytes | str) -> dict[str, Any] | None:
    """Raises ObservationError when it holds more values than a request has."""
    if isinstance(text, str):
        values = sum(text.count(mark) for mark in _VALUE_MARKS)
    else:
        values = sum(text.count(mark) for mark in _VALUE_MARKS.encode())
    if values > _MAX_VALUES:
        raise ObservationError("the body holds thousands of JSON values; send the image as json_numpy does, not a list")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _read_request(message: dict[str, Any]) -> ActionRequest:
    instruction, key = message.get("instruction"), message.get("unnorm_key")
    if not isinstance(instruction, str):
        raise ObservationError(f"`instruction` is {_kind(instruction)}; send what the robot is to do, as text")
    if key is not None and not isinstance(key, str):
        raise ObservationError(f"`unnorm_key` is {_kind(key)}; send the name of a dataset, or leave it out")
    return ActionRequest((_read_image(message.get("image")),), instruction, key)


def _read_image(value: Any) -> Image:
    if not isinstance(value, dict) or "__numpy__" not in value:
        raise ObservationError(f"`image` is {_kind(value)}; send a uint8 array as json_numpy encodes it")
    data, dtype, shape = value["__numpy__"], value.get("dtype"), value.get("shape")
    if dtype != _IMAGE_DTYPE:
        raise CodecError(f"`image` has dtype {shown(dtype)}; send uint8 (|u1) with values 0..255")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(type(n) is int and n > 0 for n in shape):
        raise CodecError(f"`image` has shape {shown(shape)}; expected [height, width, 3]")
    size = math.prod(shape)
    if not isinstance(data, str) or len(data) != 4 * -(-size // 3):
        length = len(data) if isinstance(data, str) else "no"
        raise CodecError(f"`image` of shape {shape} came with {length} characters of base64")
    try:
        pixels = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CodecError(f"`image` is not base64 ({error})") from error
    if len(pixels) != size:
        raise CodecError(f"`image` of shape {shape} came with {len(pixels)} bytes")
    return check_image(np.frombuffer(pixels, np.uint8).reshape(shape))


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
