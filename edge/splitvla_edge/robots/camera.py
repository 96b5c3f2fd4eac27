"""A live camera through OpenCV: a thread grabs, only the newest frame is kept, an unplugged device is opened again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from splitvla_edge.robots.base import Frame
from splitvla_shared.errors import ConfigError, RobotError

_REOPEN_S = 0.5


@dataclass(frozen=True, slots=True)
class CameraSettings:
    """device: /dev/video0, an index, or a stream's address. width, height: asked of the device, 0 = its own."""

    device: str = "0"
    width: int = 640
    height: int = 480

    def __post_init__(self) -> None:
        if not self.device or not (0 <= self.width <= 8192 and 0 <= self.height <= 8192):
            raise ConfigError(f"camera {self.device!r} with {self.width}x{self.height} pixels makes no sense")


class Capture(Protocol):
    """What we use of cv2.VideoCapture."""

    def read(self) -> tuple[bool, Any]: ...

    def release(self) -> None: ...


class V4l2Camera:
    """Owned by the perception process. Mutable state, under a lock: the newest frame, and why there is none."""

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
        """Raises RobotError while the device is away."""
        with self._lock:
            if self._fault:
                raise RobotError(self._fault)
            return self._frame

    def exhausted(self, now: float) -> bool:
        return False

    def close(self) -> None:
        self._closing.set()
        self._thread.join(2.0)  # a read of a broken device may hang; the thread is a daemon

    def _grab_on(self) -> None:
        while not self._closing.is_set():
            capture = self._open(self._settings)
            if capture is not None:
                self._grab_until_it_fails(capture)
                capture.release()
            if not self._closing.is_set():
                with self._lock:
                    self._fault = f"camera {self._settings.device} gives no frames; is it plugged in and free?"
                self._closing.wait(_REOPEN_S)

    def _grab_until_it_fails(self, capture: Capture) -> None:
        while not self._closing.is_set():
            there, picture = capture.read()
            if not there or picture is None or picture.ndim != 3:
                return
            captured_at = self._clock()  # the end of the exposure is a few ms earlier: drivers do not agree on it
            image = picture[:, :, ::-1].copy()  # OpenCV's order is BGR
            with self._lock:
                self._frame, self._fault = Frame(image, captured_at, self._index), ""
            self._index += 1


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
