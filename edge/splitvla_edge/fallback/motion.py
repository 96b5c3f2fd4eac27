"""From an action to the numbers that the robot gets: slowed by blend and tail, capped in speed, inside the limits."""

from __future__ import annotations

from splitvla_edge.robots.action_space import ActionSpace, Kind, clip

_EPSILON = 1e-9


def blend_weight(since_resumed_s: float, dt_s: float, blend_s: float) -> float:
    """Share of the policy's action on this tick; 1 from blend_s after motion began again."""
    return 1.0 if blend_s <= 0.0 else min(1.0, (since_resumed_s + dt_s) / blend_s)


def tail_weight(actions_left: int, tail: float) -> float:
    """Share of a chunk's action when nothing follows: the last `tail` actions slow down; this one counts as left."""
    return min(1.0, actions_left / (tail + 1.0))


def shape(
    space: ActionSpace,
    action: tuple[float, ...],
    anchor: tuple[float, ...] | None,
    limits: tuple[float, ...],
    *,
    weight: float = 1.0,
    speed_share: float = 1.0,
) -> tuple[float, ...]:
    """The command for a finite action. anchor: the set point before, or the measured pose (absolute spaces only).

    limits: of one tick, as `step_limits` gives them.
    weight: share of the motion that is made. speed_share: of the speed limits, that the motion may use; it shortens the
    motion as a whole, so that its direction stays. The gripper's target is taken as it is.
    """
    wanted = space.bounded(action)
    start = (0.0,) * len(wanted)
    if space.kind is Kind.ABSOLUTE and anchor is not None and len(anchor) == len(wanted):
        start = anchor
    moves = [weight * (value - begin) for value, begin in zip(wanted, start, strict=True)]
    if speed_share < 1.0:
        moves = _slowed(moves, limits, speed_share, space.gripper)
    values = [begin + clip(move, -limit, limit) for begin, move, limit in zip(start, moves, limits, strict=True)]
    if space.gripper is not None:
        values[space.gripper] = wanted[space.gripper]
    return space.bounded(tuple(values))


def within_reach(
    space: ActionSpace, action: tuple[float, ...], pose: tuple[float, ...] | None, limits: tuple[float, ...]
) -> bool:
    """Whether the first target after a pause lies within one tick's travel, `limits`, of where the robot is.

    Deltas and velocities are relative to where it is; an absolute target needs a known pose.
    """
    if space.kind is not Kind.ABSOLUTE:
        return True
    if pose is None or len(pose) != len(action):
        return False
    travel = zip(space.bounded(action), pose, limits, strict=True)
    return all(
        abs(target - here) <= limit * (1.0 + _EPSILON) + _EPSILON
        for index, (target, here, limit) in enumerate(travel)
        if index != space.gripper
    )


def _slowed(moves: list[float], limits: tuple[float, ...], share: float, gripper: int | None) -> list[float]:
    most = max(
        (abs(move) / limit if limit else 1.0 if move else 0.0)
        for index, (move, limit) in enumerate(zip(moves, limits, strict=True))
        if index != gripper
    )
    factor = min(1.0, share / most) if most > 0.0 else 1.0
    return [move * factor for move in moves]
