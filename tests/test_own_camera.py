"""A camera of the user's own: whatever it raises or returns is a frame, none, or a fault that names the robot."""

from __future__ import annotations

import math

import numpy as np
import pytest

from splitvla_edge.robots.base import Frame
from splitvla_edge.robots.device import DeviceCamera
from splitvla_shared.errors import RobotError


def test_a_camera_s_own_errors_are_faults() -> None:
    class Camera:
        def newest(self, now: float) -> tuple[float, int] | None:
            raise OSError("gone")

        latest = exhausted = newest

        def close(self) -> None:
            raise OSError("gone")

    camera = DeviceCamera("arm", Camera())  # type: ignore[arg-type]
    for call in (camera.newest, camera.latest, camera.exhausted, lambda _: camera.close()):
        with pytest.raises(RobotError, match=r"robot arm: camera\.\w+ raised OSError: gone"):
            call(0.0)


class Gives:
    """A camera that gives this, whatever it is asked."""

    def __init__(self, given: object) -> None:
        self.given = given

    def newest(self, now: float) -> object:
        return self.given

    latest = exhausted = newest

    def close(self) -> None: ...


PICTURE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "given", [7, (1.0,), (None, 3), ("x", 3), (math.nan, 3), (math.inf, 3), (1.0, -1), (1.0, 2.5), (1.0, 2**64)]
)
def test_a_newest_frame_that_can_t_be_told_to_control_is_a_fault(given: object) -> None:
    """It would end perception's listener, or be taken for the end of the control process."""
    with pytest.raises(RobotError, match=r"robot arm: camera\.newest gave .*; expected "):
        DeviceCamera("arm", Gives(given)).newest(0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [PICTURE, (True, PICTURE), Frame(PICTURE, math.nan, 1), Frame(PICTURE, None, 1), Frame(PICTURE, 1.0, -1)],  # type: ignore[arg-type]
)
def test_a_frame_that_is_none_is_a_fault(given: object) -> None:
    with pytest.raises(RobotError, match=r"robot arm: camera\.latest gave .*; expected "):
        DeviceCamera("arm", Gives(given)).latest(0.0)  # type: ignore[arg-type]


def test_a_camera_s_arrays_become_plain_numbers() -> None:
    newest = DeviceCamera("arm", Gives((np.float64(1.5), np.int64(3)))).newest(0.0)  # type: ignore[arg-type]
    frame = DeviceCamera("arm", Gives(Frame(PICTURE, np.float32(1.5), np.uint8(3)))).latest(0.0)  # type: ignore[arg-type]
    assert newest is not None
    assert frame is not None
    assert [type(each) for each in (*newest, frame.captured_at, frame.index)] == [float, int] * 2
    assert (newest, frame.captured_at, frame.index) == ((1.5, 3), 1.5, 3)
    nothing = DeviceCamera("arm", Gives(None))  # type: ignore[arg-type]
    assert (nothing.newest(0.0), nothing.latest(0.0), nothing.exhausted(0.0)) == (None, None, False)
