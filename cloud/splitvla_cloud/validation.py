"""Is this request one that the served model can take? Everything is checked before a payload is touched.

Rules of this file: a list is counted before it is walked, because this runs on the event loop.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from splitvla_shared.errors import RequestRejected, SpecMismatch
from splitvla_shared.limits import MAX_ROBOT_NAME_CHARS, MAX_STATE_DIMS, check_instruction
from splitvla_shared.spec import ModelSpec
from splitvla_shared.wire import inference_pb2 as pb

# Far outside any joint angle, pose or force in SI units; it keeps a sensor's garbage out of models that read the state.
MAX_STATE_VALUE = 1e6


def check_request(request: pb.InferRequest, spec: ModelSpec, vocab_size: int) -> None:
    """Raises SpecMismatch for another model's fingerprint, otherwise RequestRejected or ObservationError."""
    if request.fingerprint != spec.fingerprint:
        raise SpecMismatch(
            f"this server serves {spec.name} ({spec.fingerprint[:12]}), the request is for model "
            f"{request.fingerprint[:12]!r}; use the edge bundle of the same split"
        )
    check_instruction(request.instruction)
    _check_robot(request.robot)
    _check_state(request.state)
    if not 1 <= len(request.cameras) <= spec.max_cameras:
        raise RequestRejected(f"{len(request.cameras)} cameras; {spec.name} takes 1..{spec.max_cameras}")
    for camera in request.cameras:
        if camera.HasField("reference_sequence") != (camera.tensor.scheme == pb.KLT_DELTA):
            # A difference decoded as if it were the whole would be a wrong action, not an error.
            raise RequestRejected("a KLT_DELTA payload names the frame it builds on, and no other scheme does")
    if not 1 <= request.action_dims <= spec.max_action_dims:
        raise RequestRejected(f"action_dims is {request.action_dims}; {spec.name} takes 1..{spec.max_action_dims}")
    _check_draft(request.draft_tokens, spec.chunk_length * request.action_dims, vocab_size)


def _check_robot(name: str) -> None:
    if len(name) > MAX_ROBOT_NAME_CHARS or not name.isprintable():
        raise RequestRejected(
            f"robot name {name[:16]!r} has {len(name)} characters; at most {MAX_ROBOT_NAME_CHARS} printable ones"
        )


def _check_state(state: Collection[float]) -> None:
    if len(state) > MAX_STATE_DIMS:
        raise RequestRejected(f"state has {len(state)} values, at most {MAX_STATE_DIMS}")
    values = np.fromiter(state, dtype=np.float64)
    for index in np.flatnonzero(~(np.abs(values) <= MAX_STATE_VALUE)):
        what = values[index] if math.isfinite(values[index]) else "not finite"
        raise RequestRejected(f"state[{index}] is {what}; expected a number within +-{MAX_STATE_VALUE:g}")


def _check_draft(draft: Collection[int], count: int, vocab_size: int) -> None:
    if len(draft) > count:
        raise RequestRejected(f"{len(draft)} draft tokens; the answer has {count}")
    ids = np.fromiter(draft, dtype=np.int64)
    if (ids >= vocab_size).any():
        raise RequestRejected(f"draft token {ids.max()} is not in the vocabulary of {vocab_size}")
