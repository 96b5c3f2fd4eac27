"""Action transforms: each environment's gripper and rotation convention, as tables."""

from __future__ import annotations

import numpy as np
import pytest

from splitvla_edge.transforms import ACTION_TRANSFORMS, axis_angle, find_transform
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import ActionArray

# The model's own values of a gripper token: open, nearly open, either side of the middle, closed, wide closed.
OPEN, CLOSED = 0.996078431372549, 0.0
GRIPPERS = {
    #           none                libero simpler
    OPEN: (OPEN, -1.0, 1.0),
    0.8: (0.8, -1.0, 1.0),
    0.5019607843137255: (0.5019607843137255, -1.0, 1.0),
    0.4980392156862745: (0.4980392156862745, 1.0, -1.0),
    CLOSED: (CLOSED, 1.0, -1.0),
    -OPEN: (-OPEN, 1.0, -1.0),
}
# roll, pitch, yaw and transforms3d 0.4.2's euler2axangle of them, axis times angle.
ROTATIONS = [
    ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ((0.1, -0.2, 0.3), (0.12892336372590388, -0.18342579500937847, 0.30874816361702984)),
    ((1.0, 2.0, 3.0), (-1.7873175855106962, 0.7729235739243584, 1.1058903665246669)),
    ((-3.0, 1.5, 0.25), (-2.3440234843598917, -0.13853298011123225, 2.186421038164477)),
    ((3.1, 3.1, -3.1), (3.63441063139462, -3.486304559332041, -3.63441063139462)),
    ((np.pi, 0.0, 0.0), (np.pi, 0.0, 0.0)),
    ((0.0, np.pi / 2, 0.0), (0.0, np.pi / 2, 0.0)),
]


def _actions(gripper: float, rpy: tuple[float, float, float] = (0.1, -0.2, 0.3)) -> ActionArray:
    return np.array([[0.01, -0.02, 0.03, *rpy, gripper]])


@pytest.mark.parametrize("gripper", GRIPPERS)
def test_the_gripper_follows_each_environments_convention(gripper: float) -> None:
    found = tuple(float(find_transform(name, 7)(_actions(gripper))[0, 6]) for name in ("none", "libero", "simpler"))
    assert found == GRIPPERS[gripper]


@pytest.mark.parametrize("name", ["libero", "simpler"])
def test_a_gripper_exactly_in_the_middle_stays_put_as_in_the_reference(name: str) -> None:
    assert find_transform(name, 7)(_actions(0.5))[0, 6] == 0


@pytest.mark.parametrize(("rpy", "expected"), ROTATIONS)
def test_simpler_turns_fixed_axis_angles_into_axis_times_angle(
    rpy: tuple[float, float, float], expected: tuple[float, float, float]
) -> None:
    found = find_transform("simpler", 7)(_actions(OPEN, rpy))
    np.testing.assert_allclose(found[0, 3:6], expected, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(found[0, :3], [0.01, -0.02, 0.03])


def test_rotations_too_small_for_an_axis_are_none() -> None:
    assert (axis_angle(np.array([[1e-17, 0.0, -1e-17], [0.0, 0.0, 0.0]])) == 0).all()


def test_libero_leaves_all_but_the_gripper() -> None:
    actions = _actions(OPEN)
    np.testing.assert_array_equal(find_transform("libero", 7)(actions)[:, :6], actions[:, :6])


@pytest.mark.parametrize("name", ACTION_TRANSFORMS)
def test_every_action_of_a_chunk_is_transformed_and_the_argument_is_left_alone(name: str) -> None:
    chunk = np.concatenate([_actions(OPEN), _actions(CLOSED, (0.4, 0.5, -0.6)), _actions(OPEN, (0.0, 0.0, 0.0))])
    before = chunk.copy()
    apply = find_transform(name, 7)
    found = apply(chunk)
    np.testing.assert_array_equal(chunk, before)
    np.testing.assert_allclose(found, np.concatenate([apply(row[np.newaxis]) for row in before]), rtol=0, atol=1e-15)
    assert found.shape == chunk.shape
    assert found.dtype == np.float64


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'aloha'.*none, libero, simpler"):
        find_transform("aloha", 7)


@pytest.mark.parametrize("name", ["libero", "simpler"])
def test_an_action_of_another_length_is_refused_at_start(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} takes actions of 7 numbers, this model's have 14"):
        find_transform(name, 14)
    assert find_transform("none", 14)(np.ones((1, 14))).shape == (1, 14)
