"""openpi's websocket messages: an observation in, a chunk of actions out.

Source: src/openpi/serving/websocket_policy_server.py, the policies of src/openpi/policies and the robot programs of
examples/ in Physical-Intelligence/openpi. An image is taken as openpi takes it: floats are 0..1, and what has three
rows has its channels first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitvla_edge.policy_server.numpy_msgpack import pack, unpack
from splitvla_edge.policy_server.request import ActionRequest
from splitvla_shared.errors import ObservationError
from splitvla_shared.nouns import ActionArray, Image
from splitvla_shared.preprocess.images import check_image

# Where the programs that people have put the picture of their first camera.
FIRST_CAMERA_KEYS = (
    "observation/exterior_image_1_left",  # openpi, DROID
    "observation/image",  # openpi, LIBERO
    "images/cam_high",  # openpi, ALOHA
    "base_rgb",  # openpi, UR5
    "image",  # OpenVLA
    "full_image",  # OpenVLA-OFT
)
_PROMPT = "prompt"
# What is repeated of an observation's keys when none of them is a picture's.
_NAMED_KEYS, _NAMED_CHARS = 10, 40


@dataclass(frozen=True, slots=True)
class Timing:
    """infer_ms: from the message to its action. previous_ms: the message before, with sending; None at the first."""

    infer_ms: float
    policy_ms: float
    previous_ms: float | None = None


def read_observation(data: bytes, cameras: Sequence[str] = ()) -> ActionRequest:
    """cameras: keys of the cameras' pictures, in the model's order; none: the one of FIRST_CAMERA_KEYS that is there.

    Raises CodecError on bytes that are no such message, ObservationError on what no model could take.
    """
    message = unpack(data)
    prompt = message.get(_PROMPT)
    if isinstance(prompt, bytes):  # DROID's policy takes both
        prompt = prompt.decode("utf-8", "surrogateescape")  # what is not UTF-8 is refused with the instruction
    if not isinstance(prompt, str):
        raise ObservationError(f"`{_PROMPT}` is missing or no text; send what the robot is to do")
    keys = cameras or _first_camera(message)
    return ActionRequest(tuple(_read_image(key, _find(message, key)) for key in keys), prompt)


def write_actions(actions: ActionArray, timing: Timing) -> bytes:
    """float64 (length, dims) as openpi's servers reply."""
    server_timing = {"infer_ms": timing.infer_ms}
    if timing.previous_ms is not None:
        server_timing["prev_total_ms"] = timing.previous_ms
    return pack(
        {"actions": actions, "policy_timing": {"infer_ms": timing.policy_ms}, "server_timing": server_timing},
    )


def _find(message: Mapping[Any, Any], key: str) -> Any:
    """The value under "a/b", or under "b" of the map "a": programs do both."""
    if key in message:
        return message[key]
    first, _, rest = key.partition("/")
    inner = message.get(first)
    return inner.get(rest) if rest and isinstance(inner, dict) else None


def _first_camera(message: Mapping[Any, Any]) -> tuple[str, ...]:
    found = tuple(key for key in FIRST_CAMERA_KEYS if _find(message, key) is not None)
    if len(found) == 1:
        return found
    names = sorted(key for key in message if isinstance(key, str) and len(key) <= _NAMED_CHARS)[:_NAMED_KEYS]
    have = ", ".join((*names, "others")[: len(message)]) or "nothing"
    what = f"several pictures, {', '.join(found)}" if found else f"no picture under a known name (it holds {have})"
    raise ObservationError(f"the observation holds {what}; start serve-policy with --cameras KEY")


def _read_image(key: str, value: Any) -> Image:
    if not isinstance(value, np.ndarray):
        kind = "missing" if value is None else f"a {type(value).__name__}"
        raise ObservationError(f"{key!r} is {kind}; send the picture as an array (height, width, 3)")
    if value.dtype.kind == "f":
        if not (value.size and value.min() >= 0 and value.max() <= 1):  # also false for NaN
            raise ObservationError(f"{key!r} holds floats outside 0..1; send uint8 with values 0..255")
        value = (255 * value).astype(np.uint8)  # as openpi does, truncated
    if value.ndim == 3 and value.shape[0] == 3:
        value = np.ascontiguousarray(value.transpose(1, 2, 0))
    return check_image(value)


def metadata_message(values: Mapping[str, Any]) -> bytes:
    """What a client gets first, and calls the server's metadata."""
    return pack(values)
