"""The action space that every robot declares: what an action's numbers are, and what holding still means."""

from __future__ import annotations

import enum
import math
import operator
from dataclasses import dataclass

from splitvla_shared.errors import ConfigError

_PARKED = 1e-3  # of a dimension's range: so far outside its limits may an encoder read at the limit itself


def clip(value: float, low: float, high: float) -> float:
    """Into low..high, in a third of the time of min and max; low for NaN."""
    return value if low <= value <= high else high if value > high else low


class Kind(enum.Enum):
    """What an action's numbers are; it decides what holding still means."""

    DELTA_EE = "delta_ee"
    DELTA_JOINT = "delta_joint"
    ABSOLUTE = "absolute"
    VELOCITY = "velocity"


@dataclass(frozen=True, slots=True)
class ActionSpace:
    """Declared by every robot adapter; there is no default.

    low, high: limits of each dimension, in the robot's units, gripper included. gripper: index of the dimension that
    is the gripper's absolute target, None without one. gripper_start: the target of a robot that is ready and measures
    no opening, until the first command.
    max_speed: units a second of each dimension. An absolute space must declare it, because its limits say nothing about
    how far away a target may be; deltas and velocities that declare none are bounded by their limits.
    """

    kind: Kind
    low: tuple[float, ...]
    high: tuple[float, ...]
    gripper: int | None = None
    gripper_start: float = 0.0
    max_speed: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.kind, Kind):
            raise ConfigError(f"action space: kind is {self.kind!r:.40}; expected one of {', '.join(map(str, Kind))}")
        self._make_plain()
        if len(self.low) != len(self.high) or not self.low:
            raise ConfigError(f"action space: {len(self.low)} lower and {len(self.high)} upper limits must agree")
        if self.gripper is not None and not 0 <= self.gripper < len(self.low):
            raise ConfigError(f"action space: gripper index {self.gripper} is outside 0..{len(self.low) - 1}")
        for index, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            # Holding is zero motion, so zero must be a legal delta and a legal velocity.
            still = self.kind is Kind.ABSOLUTE or index == self.gripper or low <= 0.0 <= high
            if not (math.isfinite(low) and math.isfinite(high) and low <= high and still):
                raise ConfigError(f"action space: limits {low}..{high} of dimension {index} make no sense")
        self._check_speed()

    def _make_plain(self) -> None:
        """Plain numbers, whatever kind of array an adapter gives: ticks compare them, and a file holds them."""
        try:
            for name in ("low", "high", "max_speed"):
                object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
            object.__setattr__(self, "gripper_start", float(self.gripper_start))
            if self.gripper is not None:
                object.__setattr__(self, "gripper", operator.index(self.gripper))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"action space: {error}; low, high and max_speed are rows of numbers, gripper is a whole number or "
                "None, gripper_start a number"
            ) from error
        if not math.isfinite(self.gripper_start):
            raise ConfigError(f"action space: gripper_start is {self.gripper_start}; expected the gripper's target")

    def _check_speed(self) -> None:
        if not self.max_speed and self.kind is not Kind.ABSOLUTE:
            return
        if len(self.max_speed) != self.dims or not all(speed > 0.0 for speed in self.max_speed):
            raise ConfigError(
                f"action space: max_speed {self.max_speed} must give each of {self.dims} dimensions a speed above 0"
            )

    @property
    def dims(self) -> int:
        return len(self.low)

    def bounded(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """Finite values, each clipped to its limits."""
        limits = zip(values, self.low, self.high, strict=True)
        return tuple([v if low <= v <= high else clip(v, low, high) for v, low, high in limits])

    def step_limits(self, dt_s: float) -> tuple[float, ...]:
        """How much of each dimension's number one tick may use: of travel, or of a velocity itself."""
        own = tuple(max(abs(low), abs(high)) for low, high in zip(self.low, self.high, strict=True))
        if not self.max_speed:
            return own
        if self.kind is Kind.ABSOLUTE:
            return tuple(speed * dt_s for speed in self.max_speed)
        unit_s = 1.0 if self.kind is Kind.VELOCITY else dt_s
        return tuple(min(speed * unit_s, limit) for speed, limit in zip(self.max_speed, own, strict=True))

    def set_point_at(self, position: tuple[float, ...] | None) -> tuple[float, ...] | None:
        """Of an absolute space: what keeps an arm where it is measured to be.

        None when nobody knows, and for an arm outside the limits: what is inside them would make it jump.
        """
        if position is None or len(position) != self.dims:
            return None
        for index, (value, low, high) in enumerate(zip(position, self.low, self.high, strict=True)):
            slack = _PARKED * (high - low)
            if index != self.gripper and not low - slack <= value <= high + slack:  # nor NaN
                return None
        return self.bounded(position)

    def hold(
        self, last: tuple[float, ...] | None, position: tuple[float, ...] | None, gripper: float | None, ramp: float
    ) -> tuple[float, ...]:
        """The command that keeps the robot still.

        last: the last action or set point, None without one. position: the measured pose. gripper: its target, which
        is kept; None while nobody knows it. ramp: 1 at the moment of the last motion, falling to 0; only a velocity
        uses it. Empty when an absolute space has neither a last set point nor a measured pose inside its limits, and
        when the space has a gripper whose target is not known: any number might open it.
        """
        if self.gripper is not None and gripper is None:
            return ()
        if self.kind is Kind.ABSOLUTE:
            still = last or self.set_point_at(position)
            if still is None:
                return ()
        elif self.kind is Kind.VELOCITY and last is not None:
            still = tuple(value * ramp for value in last)
        else:
            still = (0.0,) * self.dims
        values = list(still)
        if self.gripper is not None and gripper is not None:
            values[self.gripper] = gripper
        return self.bounded(tuple(values))
