"""Named conversions of the model's action to what a robot or simulator takes, after un-normalising.

All OpenVLA training data holds the gripper as an absolute target, 0 = closed and 1 = open; environments differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import ActionArray

_GRIPPER = -1
_ROTATION = slice(3, 6)
# Below this the axis of a rotation is noise: transforms3d's own threshold for float64.
_NO_ROTATION = float(np.finfo(np.float64).eps) * 3


@dataclass(frozen=True, slots=True)
class ActionTransform:
    """apply: float64 (length, dims) to the same shape; its argument is left alone. dims: what it takes, None = any."""

    apply: Callable[[ActionArray], ActionArray]
    dims: int | None


def _none(actions: ActionArray) -> ActionArray:
    return actions


def _libero(actions: ActionArray) -> ActionArray:
    out = actions.copy()
    out[:, _GRIPPER] = -np.sign(2 * actions[:, _GRIPPER] - 1)
    return out


def _simpler(actions: ActionArray) -> ActionArray:
    out = actions.copy()
    out[:, _ROTATION] = axis_angle(actions[:, _ROTATION])
    out[:, _GRIPPER] = np.sign(2 * actions[:, _GRIPPER] - 1)
    return out


# Sources: openvla's experiments/robot/bridge (sends the action as it is) and experiments/robot/robot_utils.py with
# libero/run_libero_eval.py (normalize_gripper_action, invert_gripper_action); openvla-mini's simpler_utils.py
# (convert_maniskill).
ACTION_TRANSFORMS: dict[str, ActionTransform] = {
    "none": ActionTransform(_none, None),  # Bridge, WidowX: gripper 1 opens
    "libero": ActionTransform(_libero, 7),  # gripper -1 opens, +1 closes
    "simpler": ActionTransform(_simpler, 7),  # axis-angle rotation; gripper +1 opens, -1 closes
}


def find_transform(name: str, dims: int) -> Callable[[ActionArray], ActionArray]:
    """The transform of that name for actions of `dims` numbers. Raises ConfigError listing the names."""
    transform = ACTION_TRANSFORMS.get(name)
    if transform is None:
        raise ConfigError(f"unknown action transform {name!r:.60}; one of {', '.join(ACTION_TRANSFORMS)}")
    if transform.dims not in (None, dims):
        raise ConfigError(
            f"action transform {name} takes actions of {transform.dims} numbers, this model's have {dims}; use none"
        )
    return transform.apply


def axis_angle(rpy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, 3) roll, pitch, yaw about fixed x, y, z in radians to (n, 3) rotation axes times angles in radians.

    By way of the quaternion, as transforms3d's euler2axangle does it; angles reach to 2 pi, no rotation is zeros.
    """
    (cr, cp, cy), (sr, sp, sy) = np.cos(rpy / 2).T, np.sin(rpy / 2).T
    w = cp * cr * cy + sp * sr * sy
    xyz = np.stack([cp * sr * cy - sp * cr * sy, cp * sr * sy + sp * cr * cy, cp * cr * sy - sp * sr * cy], axis=1)
    length = np.sqrt((xyz**2).sum(axis=1))
    turning = length >= _NO_ROTATION
    angle = 2 * np.arccos(w.clip(-1, 1))
    return xyz * np.where(turning, angle / np.where(turning, length, 1.0), 0.0)[:, np.newaxis]
