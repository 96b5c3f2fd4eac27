"""Adapters of devices, held to what the daemon asks of them: what they raise is a fault, what they return is checked.

Rules of this file: an adapter may be the first that its author wrote, around a driver that raises whatever it likes.
It can make the robot hold; only by not returning can it keep the control process from the next tick.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from splitvla_edge.daemon.episodes import Episode
from splitvla_edge.fallback import Command
from splitvla_edge.robots.action_space import ActionSpace
from splitvla_edge.robots.base import Camera, Frame, Robot, RobotState
from splitvla_shared.errors import RobotError, SplitVLAError
from splitvla_shared.texts import one_line

_INDICES = 2**63  # a message to the control process has room for twice as many


class DeviceRobot:
    """A robot that is no simulated world, as the daemon uses it. Owned by the control process."""

    def __init__(self, name: str, robot: Robot) -> None:
        """Raises RobotError where the adapter declares no action space."""
        self._name, self._robot = name, robot
        with faults(name, "action_space"):
            self._space = robot.action_space
        if not isinstance(self._space, ActionSpace):
            raise RobotError(f"robot {name}: action_space is {self._space!r:.80}; expected an ActionSpace")

    @property
    def action_space(self) -> ActionSpace:
        return self._space

    @property
    def camera_memory(self) -> None:
        return None

    @property
    def episodes(self) -> tuple[Episode, ...]:
        return ()

    def read_state(self) -> RobotState:
        """With plain numbers, whatever kind of array the driver gives. Raises RobotError."""
        with faults(self._name, "read_state"):
            state = self._robot.read_state()
            if not isinstance(state, RobotState):
                raise RobotError(f"robot {self._name}: read_state gave {state!r:.80}; expected a RobotState")
            if state.estop:  # whatever else it says: a driver without power may measure nonsense, or nothing
                with suppress(RobotError):
                    return self._plain(state)
                return RobotState(ready=False, estop=True)
            return self._plain(state)

    def _plain(self, state: RobotState) -> RobotState:
        with faults(self._name, "read_state"):
            position = None if state.position is None else tuple(map(float, state.position))
            gripper = None if state.gripper is None else float(state.gripper)
        if position is not None and len(position) != self._space.dims:
            raise RobotError(
                f"robot {self._name}: read_state gave a position of {len(position)} numbers; its actions have "
                f"{self._space.dims}"
            )
        return RobotState(bool(state.ready), bool(state.estop), position, gripper, bool(state.enabled))

    def apply(self, command: Command) -> None:
        """Raises RobotError."""
        with faults(self._name, "apply"):
            self._robot.apply(command)

    def stop(self) -> None:
        """Raises RobotError."""
        with faults(self._name, "stop"):
            self._robot.stop()

    def close(self) -> None:
        """Raises RobotError."""
        with faults(self._name, "close"):
            self._robot.close()


class DeviceCamera:
    """The camera of such a robot. Owned by the perception process; `newest` is called from a second thread."""

    def __init__(self, name: str, camera: Camera) -> None:
        self._name, self._camera = name, camera

    def newest(self, now: float) -> tuple[float, int] | None:
        """With plain numbers. Raises RobotError."""
        with faults(self._name, "camera.newest"):
            newest = self._camera.newest(now)
        if newest is None:
            return None
        if not isinstance(newest, tuple) or len(newest) != 2:
            raise RobotError(f"robot {self._name}: camera.newest gave {newest!r:.80}; expected a time and an index")
        return self._numbers("camera.newest", *newest)

    def latest(self, now: float) -> Frame | None:
        """With plain numbers; the picture is looked at where it is used. Raises RobotError."""
        with faults(self._name, "camera.latest"):
            frame = self._camera.latest(now)
        if frame is None:
            return None
        if not isinstance(frame, Frame):
            raise RobotError(f"robot {self._name}: camera.latest gave a {type(frame).__name__}; expected a Frame")
        return Frame(frame.image, *self._numbers("camera.latest", frame.captured_at, frame.index))

    def _numbers(self, call: str, captured_at: object, index: object) -> tuple[float, int]:
        with suppress(TypeError, ValueError, OverflowError):
            at, number = float(captured_at), operator.index(index)  # type: ignore[arg-type]
            if math.isfinite(at) and 0 <= number < _INDICES:
                return at, number
        raise RobotError(
            f"robot {self._name}: {call} gave the capture time {captured_at!r:.40} and the index {index!r:.40}; "
            "expected monotonic seconds and a whole number from 0 up"
        )

    def exhausted(self, now: float) -> bool:
        """Raises RobotError."""
        with faults(self._name, "camera.exhausted"):
            return bool(self._camera.exhausted(now))

    def close(self) -> None:
        with faults(self._name, "camera.close"):
            self._camera.close()


@contextmanager
def faults(name: str, call: str, kept: type[SplitVLAError] = RobotError) -> Iterator[None]:
    """What an adapter's `call` raises, as a RobotError that names its kind; what is `kept` as it is."""
    try:
        yield
    except kept:
        raise
    except Exception as error:  # a driver's own: its kind is all that we know of it
        raise RobotError(f"robot {name}: {call} raised {type(error).__name__}: {one_line(str(error))}") from error
