"""Recorded frames played by the clock, and a robot that only writes its commands down."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from splitvla_edge.daemon.record import LineWriter
from splitvla_edge.fallback import Command
from splitvla_edge.robots.action_space import ActionSpace, Kind
from splitvla_edge.robots.base import Frame, RobotState
from splitvla_shared.errors import ConfigError, RobotError
from splitvla_shared.nouns import Image

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
_DEFAULT_FPS = 5.0


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """frames: a folder of images, played in the order of their names, or a video. fps: none = the video's own, or 5.

    commands: where commands are written, JSON lines or, with a name in .csv, a table; none = the run's folder.
    dims, gripper, limit: the action space of the robot that is not there: delta end-effector, limits -limit..limit.
    """

    frames: Path | None = None
    fps: float | None = None
    loop: bool = False
    commands: Path | None = None
    dims: int = 7
    gripper: int | None = 6
    limit: float = 10.0


class Source(Protocol):
    """Numbered images. `read` is asked for rising numbers, but for a loop, which begins again at 0."""

    count: int
    fps: float

    def read(self, index: int) -> Image: ...

    def close(self) -> None: ...


class ReplayCamera:
    """Frame n is captured n / fps seconds after the first look; frames that nobody looked at are never decoded.

    Owned by the perception process. Mutable state: the moment of the first look, and the last decoded frame.
    """

    def __init__(self, settings: ReplaySettings, first_frame: int = 0) -> None:
        """first_frame: where a perception process that was started again goes on. Raises ConfigError."""
        if settings.fps is not None and not (math.isfinite(settings.fps) and 0 < settings.fps <= 1000):
            raise ConfigError(f"replay.fps is {settings.fps}; expected above 0, at most 1000")
        self._source = open_source(settings.frames)
        self._fps = settings.fps or self._source.fps
        self._first = first_frame
        self._last = math.inf if settings.loop else self._source.count - 1
        self._started: float | None = None
        self._frame: Frame | None = None

    def newest(self, now: float) -> tuple[float, int] | None:
        if self._started is None:
            return None
        # The epsilon keeps (n / fps) * fps from falling below n.
        played = int((now - self._started) * self._fps + 1e-6)
        index = min(self._first + played, self._last)
        return self._started + max(0.0, index - self._first) / self._fps, int(index)

    def latest(self, now: float) -> Frame | None:
        if self._started is None:
            self._started = now
        newest = self.newest(now)
        if newest is not None and (self._frame is None or self._frame.index != newest[1]):
            captured_at, index = newest
            self._frame = Frame(self._source.read(index % self._source.count), captured_at, index)
        return self._frame

    def exhausted(self, now: float) -> bool:
        newest = self.newest(now)
        return newest is not None and newest[1] >= self._last

    def close(self) -> None:
        self._source.close()


def open_source(frames: Path | None, setting: str = "replay.frames") -> Source:
    """A folder of images or a video. Raises ConfigError, in the name of `setting`."""
    if frames is None:
        raise ConfigError(f"{setting} is not set; name a folder of images or a video with --frames")
    if frames.is_dir():
        return _Folder(frames, setting)
    if not frames.is_file():
        raise ConfigError(f"{setting} {frames} is not there; name a folder of images or a video")
    return _Video(frames, setting)


class _Folder:
    def __init__(self, path: Path, setting: str) -> None:
        self._files = sorted(file for file in path.iterdir() if file.suffix.lower() in _IMAGES)
        if not self._files:
            raise ConfigError(f"{setting} {path} holds no images ({', '.join(sorted(_IMAGES))})")
        self.count, self.fps = len(self._files), _DEFAULT_FPS

    def read(self, index: int) -> Image:
        from splitvla_shared.preprocess.images import load_image  # Pillow stays out of the control process

        return load_image(self._files[index])

    def close(self) -> None:
        pass


class _Video:
    """Mutable state: the decoder, and the number of the frame that it gives next."""

    def __init__(self, path: Path, setting: str) -> None:
        self._path, self._setting, self._next = path, setting, 0
        self._capture = self._open()
        import cv2

        count, fps = self._capture.get(cv2.CAP_PROP_FRAME_COUNT), self._capture.get(cv2.CAP_PROP_FPS)
        if not (math.isfinite(count) and count >= 1):
            self.close()
            raise ConfigError(f"{setting} {path}: no frames found; is it a video that OpenCV reads?")
        self.count, self.fps = int(count), fps if 0 < fps <= 1000 else _DEFAULT_FPS

    def _open(self) -> Any:
        import cv2  # OpenCV stays out of the control process

        capture = cv2.VideoCapture(str(self._path))
        if not capture.isOpened():
            raise ConfigError(f"{self._setting} {self._path} is neither a folder nor a video that OpenCV reads")
        return capture

    def read(self, index: int) -> Image:
        import cv2

        if index < self._next:
            self.close()
            self._capture, self._next = self._open(), 0
        while self._next < index and self._capture.grab():
            self._next += 1
        there, picture = self._capture.read()
        if not there:
            raise RobotError(f"{self._path}: frame {index} of {self.count} can't be decoded")
        self._next = index + 1
        image: Image = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        return image

    def close(self) -> None:
        self._capture.release()


def commands_path(settings: ReplaySettings, run_dir: Path) -> Path:
    """Where CommandRecorder writes."""
    return settings.commands or run_dir / "commands.jsonl"


class CommandRecorder:
    """A robot without an arm: every command is written to a file by a thread. Owned by the control process."""

    def __init__(self, settings: ReplaySettings, run_dir: Path) -> None:
        """Raises ConfigError when the action space makes no sense or the file can't be written."""
        if settings.dims < 1 or settings.limit <= 0:
            raise ConfigError(f"replay.dims {settings.dims} and replay.limit {settings.limit} must be above 0")
        self._space = ActionSpace(
            kind=Kind.DELTA_EE,
            low=(-settings.limit,) * settings.dims,
            high=(settings.limit,) * settings.dims,
            gripper=settings.gripper,
            gripper_start=1.0,  # open, in the convention of OpenVLA's training data
        )
        path = commands_path(settings, run_dir)
        self._line = _as_csv if path.suffix.lower() == ".csv" else _as_json
        self._writer = LineWriter(path)
        if self._line is _as_csv:
            names = ["tick", "state", "motion", "stop", "sequence", "index"]
            self._writer.put(",".join(names + [f"a{i}" for i in range(settings.dims)]))

    @property
    def action_space(self) -> ActionSpace:
        return self._space

    def read_state(self) -> RobotState:
        return RobotState()

    def apply(self, command: Command) -> None:
        self._writer.put(self._line(command))

    def stop(self) -> None:
        """There is nothing that moves."""

    def close(self) -> None:
        self._writer.close()


def _as_json(command: Command) -> str:
    return json.dumps(
        {
            "tick": command.tick,
            "state": command.state.value,
            "motion": command.motion,
            "stop": command.stop,
            "sequence": command.sequence,
            "index": command.index,
            "action": command.values,
        },
        separators=(",", ":"),
    )


def _as_csv(command: Command) -> str:
    text = io.StringIO()
    head = [command.tick, command.state.value, int(command.motion), int(command.stop), command.sequence, command.index]
    csv.writer(text, lineterminator="").writerow([*head, *command.values])
    return text.getvalue()
