"""OpenVLA's seven-number end-effector action on one side, Meta-World's four numbers on the other.

OpenVLA: dx, dy, dz in metres a control step, three rotations, which this arm keeps constant, and the gripper from
0 (closed) to 1 (open). Meta-World: dx, dy, dz in [-1, 1], of which 1 is a centimetre a step, and the gripper's effort
from -1 (opens) to 1 (closes).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splitvla_shared.errors import RobotError
from splitvla_shared.nouns import ActionArray

DIMS = 7
NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
GRIPPER = 6
REPEATS = 4  # Meta-World's steps in one control step, each with the same action
MAX_STEP_M = 0.01 * REPEATS  # what one control step moves the arm's target at most, each axis


def to_metaworld(action: Sequence[float] | ActionArray) -> ActionArray:
    """(7,) to (4,), clipped to Meta-World's limits. Raises RobotError for another length or a number not finite."""
    values = np.asarray(action, dtype=np.float64)
    if values.shape != (DIMS,) or not np.isfinite(values).all():
        raise RobotError(f"metaworld: action {values.tolist()} must be {DIMS} finite numbers ({', '.join(NAMES)})")
    limited: ActionArray = np.clip(np.append(values[:3] / MAX_STEP_M, 1.0 - 2.0 * values[GRIPPER]), -1.0, 1.0)
    return limited


def from_metaworld(action: ActionArray) -> ActionArray:
    """(4,) to (7,): the clipped motion in metres, no rotation, and the gripper's opening."""
    limited = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
    return np.concatenate([limited[:3] * MAX_STEP_M, np.zeros(3), [(1.0 - limited[3]) / 2.0]])
