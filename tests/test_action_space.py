"""The action space that a robot declares: plain numbers whatever it is given, and never one without a way to hold."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from splitvla_edge.robots.action_space import ActionSpace, Kind
from splitvla_shared.errors import ConfigError


@pytest.mark.parametrize(
    "space",
    [
        lambda: ActionSpace(Kind.DELTA_EE, (), ()),
        lambda: ActionSpace(Kind.DELTA_EE, (-1.0,), (1.0, 1.0)),
        lambda: ActionSpace(Kind.DELTA_EE, (-1.0,), (1.0,), gripper=1),
        lambda: ActionSpace(Kind.DELTA_EE, (0.5,), (1.0,)),
        lambda: ActionSpace(Kind.VELOCITY, (-1.0,), (-0.5,)),
        lambda: ActionSpace(Kind.ABSOLUTE, (1.0,), (-1.0,)),
        lambda: ActionSpace(Kind.ABSOLUTE, (-math.inf,), (1.0,)),
        lambda: ActionSpace(Kind.ABSOLUTE, (-1.0,), (1.0,)),
        lambda: ActionSpace(Kind.ABSOLUTE, (-1.0,), (1.0,), max_speed=(0.0,)),
    ],
)
def test_an_action_space_in_which_the_robot_can_t_hold_still_is_refused(space: Any) -> None:
    with pytest.raises(ConfigError, match="action space"):
        space()


@pytest.mark.parametrize("make", [np.array, lambda limits: tuple(np.array(limits, np.float32)), list])
def test_limits_given_as_arrays_become_plain_numbers(make: Any) -> None:
    """They go into the black box's first lines, as JSON."""
    space = ActionSpace(
        Kind.ABSOLUTE,
        make([-1, -1, 0]),
        make([1, 1, 1]),
        np.int64(2),  # type: ignore[arg-type]
        np.float32(0.5),  # type: ignore[arg-type]
        max_speed=make([1, 1, 1]),
    )
    assert space == ActionSpace(Kind.ABSOLUTE, (-1.0, -1.0, 0.0), (1.0, 1.0, 1.0), 2, 0.5, max_speed=(1.0, 1.0, 1.0))
    assert json.loads(json.dumps(asdict(space) | {"kind": ""}))["low"] == [-1.0, -1.0, 0.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"low": None},
        {"low": 0.0},
        {"high": ("wide",)},
        {"high": np.ones((1, 1, 2))},
        {"gripper": 0.0},
        {"gripper": "first"},
        {"gripper_start": None},
        {"gripper_start": math.nan},
        {"kind": "absolute"},  # it would hold with zeros, like a delta
    ],
)
def test_an_action_space_of_something_else_than_numbers_is_refused(changes: dict[str, Any]) -> None:
    given: dict[str, Any] = {"kind": Kind.DELTA_EE, "low": (-1.0,), "high": (1.0,)}
    with pytest.raises(ConfigError, match="action space"):
        ActionSpace(**given | changes)
