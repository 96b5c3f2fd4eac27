"""A live camera through OpenCV: a thread grabs, only the newest frame is kept, a device that fails is opened again.

A picture that shows nothing (frame_guard.py) is not kept: one is passed over, several are a fault.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from splitvla_edge.robots.base import Frame
from splitvla_edge.robots.frame_guard import FrameGuard
from splitvla_shared.errors import ConfigError, RobotError
from splitvla_shared.texts import one_line

_REOPEN_S = 0.5
_SILENT_S = 2.0  # every device gives more than one picture in this time
_GLITCH_S = 0.2  # a black frame now and then is a glitch; without a good one for so long, it is a fault


@dataclass(frozen=True, slots=True)
class CameraSettings:
    """device: /dev/video0, an index, or a stream's address. width, height: asked of the device, 0 = its own.

    blind_levels, frozen_ms: see FrameGuard; 0 turns either off.
    """

    device: str = "0"
    width: int = 640
    height: int = 480
    blind_levels: int = 8
    frozen_ms: float = 300.0

    def __post_init__(self) -> None:
        if not self.device or not (0 <= self.width <= 8192 and 0 <= self.height <= 8192):
            raise ConfigError(f"camera {self.device!r} with {self.width}x{self.height} pixels makes no sense")
        if not 0 <= self.blind_levels <= 255:
            raise ConfigError(f"camera.blind_levels is {self.blind_levels}; expected 0..255")
        if not 0 <= self.frozen_ms <= 60_000:
            raise ConfigError(f"camera.frozen_ms is {self.frozen_ms}; expected 0..60000")


class Capture(Protocol):
    """What we use of cv2.VideoCapture."""

    def read(self) -> tuple[bool, Any]: ...

    def release(self) -> None: ...


class LiveCamera:
    """Owned by the perception process. Mutable state, under a lock: the newest frame, and what is wrong now."""

    def __init__(
        self,
        settings: CameraSettings,
        first_frame: int = 0,
        *,
        open_capture: Callable[[CameraSettings], Capture | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._clock = settings, clock
        self._open = open_capture or open_device
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._frame: Frame | None = None
        self._fault = ""
        self._index = first_frame
        self._thread = threading.Thread(target=self._grab_on, name="camera", daemon=True)
        self._thread.start()

    def newest(self, now: float) -> tuple[float, int] | None:
        with self._lock:
            return None if self._frame is None else (self._frame.captured_at, self._frame.index)

    def latest(self, now: float) -> Frame | None:
        """Raises RobotError while the device is away or shows nothing, or when its driver does not return."""
        with self._lock:
            if self._fault:
                raise RobotError(self._fault)
            silent_s = 0.0 if self._frame is None else now - self._frame.captured_at
            if silent_s > _SILENT_S:
                raise RobotError(
                    f"camera {self._settings.device} has given no picture for {silent_s:.1f} s; where its driver "
                    "hangs, only another run opens it again"
                )
            return self._frame

    def exhausted(self, now: float) -> bool:
        return False

    def close(self) -> None:
        self._closing.set()
        self._thread.join(2.0)  # a read of a broken device may hang; the thread is a daemon

    def _grab_on(self) -> None:
        while not self._closing.is_set():
            try:
                self._grab_from_one_device()
            except RobotError as error:  # noqa: PERF203 - one device after the other, half a second apart
                with self._lock:
                    self._fault = str(error)
                self._closing.wait(_REOPEN_S)

    def _grab_from_one_device(self) -> None:
        """Ends in a RobotError: the device gives no more frames, or the camera was closed."""
        device = f"camera {self._settings.device}"
        try:
            capture = self._open(self._settings)
            if capture is not None:
                try:
                    self._grab_until_it_fails(capture)
                finally:
                    with suppress(Exception):  # of a device that is gone already; `read` has said why
                        capture.release()
        except RobotError:
            raise
        except Exception as error:  # a user's own capture raises what it likes, and the next one may do better
            said = f"{type(error).__name__}: {one_line(str(error))}"
            raise RobotError(f"{device} raised {said}; it is opened again") from error
        raise RobotError(f"{device} gives no frames; is it plugged in and free?")

    def _grab_until_it_fails(self, capture: Capture) -> None:
        guard = FrameGuard(self._settings.blind_levels, self._settings.frozen_ms / 1e3)
        while not self._closing.is_set():
            there, picture = capture.read()
            if not there or picture is None:
                return
            if picture.shape[2:] != (3,) or picture.dtype != np.uint8:  # of BGRA the model would see other colours
                raise RobotError(
                    f"camera {self._settings.device} gives pictures of shape {picture.shape} and {picture.dtype}; "
                    "expected (height, width, 3), BGR, and uint8"
                )
            captured_at = self._clock()  # the end of the exposure is a few ms earlier: drivers do not agree on it
            image = picture[:, :, ::-1].copy()  # OpenCV's order is BGR
            self._keep(Frame(image, captured_at, self._index), guard.judge(image, captured_at))
            self._index += 1

    def _keep(self, frame: Frame, wrong: str) -> None:
        with self._lock:
            if not wrong:
                self._frame, self._fault = frame, ""
            elif self._frame is None or frame.captured_at - self._frame.captured_at > _GLITCH_S:
                self._fault = f"camera {self._settings.device} {wrong}"


def open_device(settings: CameraSettings) -> Capture | None:
    """A capture with the smallest buffer that the driver allows, or None when the device does not open."""
    import cv2  # OpenCV stays out of the control process

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # the fault says it already
    device = int(settings.device) if settings.device.isdigit() else settings.device
    capture = cv2.VideoCapture(device)
    if not capture.isOpened():
        capture.release()
        return None
    wanted = ((cv2.CAP_PROP_BUFFERSIZE, 1), (cv2.CAP_PROP_FRAME_WIDTH, settings.width))
    for name, value in (*wanted, (cv2.CAP_PROP_FRAME_HEIGHT, settings.height)):
        if value:
            capture.set(name, value)
    opened: Capture = capture
    return opened
