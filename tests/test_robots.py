"""Robots: the action space and what holding means, replayed frames, a live camera, recorded commands."""

from __future__ import annotations

import csv
import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PillowImage

from splitvla_edge.daemon.run import RunSettings
from splitvla_edge.fallback import Command, State
from splitvla_edge.robots import ROBOTS, find_world, open_camera, open_robot
from splitvla_edge.robots.camera import CameraSettings, LiveCamera
from splitvla_edge.robots.replay import CommandRecorder, ReplayCamera, ReplaySettings
from splitvla_shared.errors import ConfigError, RobotError

CLIP = Path(__file__).resolve().parent.parent / "benchmarks" / "data" / "widowx_can.mp4"
COMMAND = Command(3, State.NOMINAL, "action executed", (0.1, -0.2), 1, motion=True, sequence=8, index=0, age_s=0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, each of one grey value: 0, 10, 20, 30."""
    for value in range(4):
        PillowImage.fromarray(np.full((6, 8, 3), value * 10, np.uint8)).save(tmp_path / f"frame_{value}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def grey(camera: ReplayCamera, now: float) -> int:
    frame = camera.latest(now)
    assert frame is not None
    return int(frame.image[0, 0, 0])


def test_frames_are_played_by_the_clock_from_the_first_look_on(folder: Path) -> None:
    camera = ReplayCamera(ReplaySettings(folder, fps=10.0))
    assert camera.newest(4.0) is None
    assert [grey(camera, now) for now in (5.0, 5.09, 5.1, 5.35)] == [0, 0, 10, 30], "the newest wins"
    assert camera.newest(5.25) == pytest.approx((5.2, 2))


def test_a_replay_is_exhausted_at_its_last_frame_which_then_goes_stale(folder: Path) -> None:
    camera = ReplayCamera(ReplaySettings(folder, fps=10.0))
    camera.latest(0.0)
    assert [camera.exhausted(now) for now in (0.29, 0.3, 9.0)] == [False, True, True]
    assert camera.newest(9.0) == pytest.approx((0.3, 3))


def test_a_looped_replay_begins_again_under_rising_numbers(folder: Path) -> None:
    camera = ReplayCamera(ReplaySettings(folder, fps=10.0, loop=True))
    assert [grey(camera, now) for now in (0.0, 0.3, 0.4, 0.5)] == [0, 30, 0, 10]
    assert camera.newest(0.5) == pytest.approx((0.5, 5))
    assert not camera.exhausted(1e6)


def test_a_replay_goes_on_where_a_crashed_process_was(folder: Path) -> None:
    camera = ReplayCamera(ReplaySettings(folder, fps=10.0), first_frame=2)
    assert [grey(camera, now) for now in (0.0, 0.1)] == [20, 30]
    beyond = ReplayCamera(ReplaySettings(folder, fps=10.0), first_frame=99)
    assert grey(beyond, 0.0) == 30
    assert beyond.exhausted(0.0)


def test_a_video_is_played_at_its_own_rate_and_skips_what_nobody_looked_at() -> None:
    camera = ReplayCamera(ReplaySettings(CLIP, loop=True))
    frames = [camera.latest(now) for now in (0.0, 1.0, 7.3, 7.5)]
    assert [frame.index for frame in frames if frame] == [0, 5, 36, 37]
    first, again = frames[0], frames[3]
    assert first is not None
    assert again is not None
    assert first.image.shape == (480, 640, 3)
    assert np.array_equal(first.image, again.image), "frame 37 is frame 0 of the next round"
    camera.close()


@pytest.mark.parametrize("fps", [0.0, -1.0, math.nan, 1e9])
def test_a_frame_rate_that_makes_no_sense_is_refused(folder: Path, fps: float) -> None:
    with pytest.raises(ConfigError, match=r"replay\.fps"):
        ReplayCamera(ReplaySettings(folder, fps=fps))


def test_frames_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    for frames in (None, tmp_path / "absent", tmp_path / "empty", tmp_path / "text.mp4"):
        with pytest.raises(ConfigError, match=r"replay\.frames"):
            ReplayCamera(ReplaySettings(frames))


def test_commands_are_recorded_as_json_lines(tmp_path: Path) -> None:
    robot = CommandRecorder(ReplaySettings(dims=2, gripper=1), tmp_path)
    robot.apply(COMMAND)
    robot.stop()
    robot.close()
    (line,) = (tmp_path / "commands.jsonl").read_text().splitlines()
    written = json.loads(line)
    assert written["action"] == [0.1, -0.2]
    assert (written["tick"], written["state"], written["motion"], written["sequence"]) == (3, "NOMINAL", True, 8)


def test_commands_are_recorded_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "commands.csv"
    robot = CommandRecorder(ReplaySettings(dims=2, gripper=1, commands=path), tmp_path)
    robot.apply(COMMAND)
    robot.close()
    (row,) = csv.DictReader(path.read_text().splitlines())
    assert (row["a0"], row["a1"], row["state"], row["motion"], row["sequence"]) == ("0.1", "-0.2", "NOMINAL", "1", "8")


class FakeCapture:
    """A device with as many frames as it is given; then it is unplugged."""

    def __init__(self, frames: int) -> None:
        self.left, self.released = frames, False

    def read(self) -> tuple[bool, Any]:
        if not self.left:
            return False, None
        self.left -= 1
        picture = np.zeros((16, 16, 3), np.uint8)
        picture[:8, :, 0] = 200  # blue comes first in OpenCV
        return True, picture

    def release(self) -> None:
        self.released = True


def test_a_camera_keeps_the_newest_frame_and_is_opened_again_after_it_was_unplugged() -> None:
    captures = [FakeCapture(3), FakeCapture(2)]
    opened, reopen = threading.Semaphore(0), threading.Event()

    def open_capture(_: CameraSettings) -> FakeCapture | None:
        opened.release()
        if len(captures) == 1:
            assert reopen.wait(5.0)
        return captures.pop(0) if captures else None

    camera = LiveCamera(CameraSettings(), open_capture=open_capture)
    try:
        assert opened.acquire(timeout=5.0)
        assert opened.acquire(timeout=5.0), "opened again"
        with pytest.raises(RobotError, match="camera 0 gives no frames"):
            camera.latest(0.0)
        newest = camera.newest(0.0)
        assert newest is not None
        assert newest[1] == 2, "the capture time stands still, so that the camera counts as stale"
        reopen.set()
        assert opened.acquire(timeout=5.0)
        newest = camera.newest(0.0)
        assert newest is not None
        assert newest[1] == 4
        assert newest[0] <= time.monotonic()
        assert not camera.exhausted(0.0)
    finally:
        reopen.set()
        camera.close()


def test_a_camera_s_image_is_rgb() -> None:
    grabbed = threading.Event()
    capture = FakeCapture(1)

    def open_capture(_: CameraSettings) -> FakeCapture | None:
        if capture.left:
            return capture
        grabbed.set()
        return None

    camera = LiveCamera(CameraSettings(), 7, open_capture=open_capture)
    assert grabbed.wait(5.0)
    camera.close()
    assert capture.released
    frame = camera._frame
    assert frame is not None
    assert frame.index == 7
    assert frame.image[0, 0].tolist() == [0, 0, 200]


class Pictures:
    """A device that gives these pictures, 125 ms apart by its own clock, and then keeps its reader waiting."""

    def __init__(self, pictures: list[npt.NDArray[np.uint8]]) -> None:
        self.pictures, self.now = list(pictures), 50.0
        self.all_read, self.unplugged = threading.Event(), threading.Event()

    def read(self) -> tuple[bool, Any]:
        if not self.pictures:
            self.all_read.set()
            self.unplugged.wait(5.0)
            return False, None
        self.now += 0.125
        return True, self.pictures.pop(0)

    def release(self) -> None: ...


SCENE = np.arange(16 * 16 * 3).astype(np.uint8).reshape(16, 16, 3)
BLACK = np.zeros((16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("pictures", "newest", "fault"),
    [
        ([SCENE, BLACK], 0, ""),  # passed over
        ([SCENE, BLACK, BLACK, BLACK], 0, "sees nothing"),
        ([BLACK], None, "sees nothing"),
        ([SCENE, BLACK, BLACK, BLACK, SCENE + 1], 4, ""),
        ([SCENE] * 3, 2, ""),
        ([SCENE] * 8, 2, "is frozen"),
        ([*[SCENE] * 8, SCENE + 1], 8, ""),
    ],
)
def test_a_frame_that_shows_nothing_is_never_the_newest_and_soon_a_fault(
    pictures: list[npt.NDArray[np.uint8]], newest: int | None, fault: str
) -> None:
    device = Pictures(pictures)
    camera = LiveCamera(CameraSettings(), open_capture=lambda _: device, clock=lambda: device.now)
    try:
        assert device.all_read.wait(5.0)
        kept = camera.newest(0.0)
        assert (None if kept is None else kept[1]) == newest
        if fault:
            with pytest.raises(RobotError, match=f"camera 0 {fault}"):
                camera.latest(0.0)
        else:
            assert camera.latest(0.0) is not None
    finally:
        device.unplugged.set()
        camera.close()


def test_a_camera_whose_driver_does_not_return_says_so() -> None:
    device = Pictures([SCENE])
    camera = LiveCamera(CameraSettings(), open_capture=lambda _: device, clock=lambda: device.now)
    try:
        assert device.all_read.wait(5.0)
        assert camera.latest(device.now + 1.9) is not None
        with pytest.raises(RobotError, match=r"camera 0 has given no picture for 2\.1 s; where its driver hangs"):
            camera.latest(device.now + 2.1)
    finally:
        device.unplugged.set()
        camera.close()


class Odd:
    """A device that raises, or gives something that is no picture, where it is told to; released it raises too."""

    def __init__(self, reads: list[Any]) -> None:
        self.reads = reads

    def read(self) -> tuple[bool, Any]:
        given = self.reads.pop(0)
        if isinstance(given, Exception):
            raise given
        return True, given

    def release(self) -> None:
        raise OSError("gone already")


@pytest.mark.parametrize(
    ("first", "fault"),
    [
        (RuntimeError("no device connected"), "raised RuntimeError: no device connected"),
        (Odd([SCENE, TimeoutError("no frame in 5 s")]), "raised TimeoutError: no frame in 5 s"),
        (Odd([SCENE, b"jpeg"]), "raised AttributeError: 'bytes' object"),
        (Odd([SCENE[:, :, 0]]), r"gives pictures of shape \(16, 16\) and uint8; expected"),
        (Odd([np.dstack([SCENE, BLACK])[:, :, :4]]), r"gives pictures of shape \(16, 16, 4\) and uint8; expected"),
        (Odd([SCENE / 255]), r"gives pictures of shape \(16, 16, 3\) and float64; expected"),
    ],
)
def test_a_camera_that_raises_or_gives_no_bgr_picture_says_so_and_is_opened_again(
    first: Exception | Odd, fault: str
) -> None:
    opened, reopen, back = threading.Semaphore(0), threading.Event(), Pictures([SCENE, SCENE + 1])
    devices = [first, back]

    def open_capture(_: CameraSettings) -> Odd | Pictures:
        opened.release()
        if len(devices) == 1:
            assert reopen.wait(5.0)
        device = devices.pop(0)
        if isinstance(device, Exception):
            raise device
        return device

    camera = LiveCamera(CameraSettings(), open_capture=open_capture)
    try:
        assert opened.acquire(timeout=5.0)
        assert opened.acquire(timeout=5.0), "opened again"
        with pytest.raises(RobotError, match=f"camera 0 {fault}"):
            camera.latest(0.0)
        reopen.set()
        assert back.all_read.wait(5.0)
        assert camera.latest(0.0) is not None
    finally:
        reopen.set()
        back.unplugged.set()
        camera.close()


def test_camera_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError):
        CameraSettings(device="")
    with pytest.raises(ConfigError):
        CameraSettings(width=-1)
    with pytest.raises(ConfigError, match="blind_levels is 256"):
        CameraSettings(blind_levels=256)
    with pytest.raises(ConfigError, match=r"frozen_ms is -1\.0"):
        CameraSettings(frozen_ms=-1.0)


def test_an_unknown_robot_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="replay, camera, metaworld:TASK"):
        find_world("arm")


@pytest.mark.parametrize("name", ROBOTS)
def test_every_robot_of_the_table_declares_its_action_space(name: str, folder: Path) -> None:
    settings = RunSettings(robot=name, replay=ReplaySettings(folder))
    robot = open_robot(settings, 0.2, folder)
    assert robot.action_space.dims == 7
    assert robot.read_state().ready
    robot.close()
    if name == "replay":
        open_camera(settings).close()
