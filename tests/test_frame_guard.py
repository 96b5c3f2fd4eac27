"""The guard against pictures that show nothing: black, covered, frozen. Real frames pass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.frames import read_frames
from splitvla_edge.robots.frame_guard import FrameGuard

RANDOM = np.random.default_rng(0)
BLACK = np.zeros((480, 640, 3), np.uint8)


def noisy(level: int, sigma: float) -> npt.NDArray[np.uint8]:
    return np.clip(RANDOM.normal(level, sigma, BLACK.shape), 0, 255).astype(np.uint8)


def hot_pixels() -> npt.NDArray[np.uint8]:
    picture = BLACK.copy()
    picture.reshape(-1, 3)[RANDOM.integers(0, 480 * 640, 200)] = 255
    return picture


@pytest.mark.parametrize(
    "picture", [BLACK, BLACK + 255, noisy(3, 1.0), noisy(128, 1.0), hot_pixels()],
    ids=["black", "white", "covered lens", "grey", "hot pixels"],
)  # fmt: skip
def test_a_picture_of_one_colour_shows_nothing(picture: npt.NDArray[np.uint8]) -> None:
    assert "sees nothing" in FrameGuard(8, 0.0).judge(picture, 1.0)


def test_real_frames_show_something_at_any_brightness_that_a_robot_works_in() -> None:
    guard = FrameGuard(8, 0.3)
    for number, frame in enumerate(read_frames()):
        assert guard.judge(frame, number / 5) == ""
        assert guard.judge((frame // 8).astype(np.uint8), number / 5) == ""


def test_a_picture_that_stays_the_same_is_frozen_once_it_has_stayed_so_long() -> None:
    guard, picture = FrameGuard(0, 0.3), noisy(100, 30.0)
    assert [bool(guard.judge(picture.copy(), at)) for at in (0.0, 0.1, 0.3, 0.31, 5.0)] == [False] * 3 + [True] * 2


def test_one_bit_is_enough_to_be_alive_again() -> None:
    guard, picture = FrameGuard(0, 0.3), noisy(100, 30.0)
    assert guard.judge(picture, 0.0) == ""
    assert guard.judge(picture, 1.0) != ""
    changed = picture.copy()
    changed[7, 5, 1] ^= 1
    assert guard.judge(changed, 1.1) == ""
    assert guard.judge(changed, 1.2) == ""


def test_zero_turns_either_guard_off() -> None:
    guard = FrameGuard(0, 0.0)
    assert [guard.judge(BLACK, float(at)) for at in range(5)] == [""] * 5
