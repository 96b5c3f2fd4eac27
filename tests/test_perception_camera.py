"""Perception and its camera: what a camera does wrong is told, and what ends the listener ends the process."""

from __future__ import annotations

import dataclasses
import math

import pytest

from splitvla_edge.daemon.channel import FrameSeen
from splitvla_edge.daemon.datagrams import ChannelError
from splitvla_edge.fallback import Miss, Outcome
from splitvla_shared.errors import RobotError
from tests.perception_rig import HINT, Rig


def test_a_camera_that_can_t_say_its_newest_frame_is_told_and_asked_again() -> None:
    with Rig().agreed() as rig:
        rig.show(0)
        rig.camera.newest_error = RobotError("robot arm: camera.newest raised OSError: gone")
        rig.control.send(HINT._replace(epoch=5))
        rig.perception.listen()
        assert rig.control.receive() == [Miss(0, Outcome.FAULT, "robot arm: camera.newest raised OSError: gone")]
        rig.camera.newest_error = None
        rig.perception.listen()
        asked, *_ = rig.step()[1:]
        assert asked.epoch == 5, "control's word was taken although the camera failed"  # type: ignore[union-attr]


def test_what_can_t_be_sent_is_not_taken_for_the_end_of_control() -> None:
    with Rig().agreed() as rig:
        rig.show(0)
        assert rig.camera.frame is not None
        rig.camera.frame = dataclasses.replace(rig.camera.frame, captured_at=math.nan)
        with pytest.raises(ChannelError, match="FrameSeen can't be sent"):
            rig.perception.listen()
        assert not rig.perception.closed.is_set()


def test_what_ends_the_listener_ends_the_process_with_its_reason() -> None:
    """Without it perception would go on with an old hint for ever, and report no frames."""
    with Rig().agreed() as rig:
        rig.camera.newest_error = ZeroDivisionError("a defect of ours")
        with pytest.raises(ZeroDivisionError, match="a defect of ours"):
            rig.perception.run()
        assert rig.perception.closed.is_set()


def test_frames_are_reported_once() -> None:
    with Rig().agreed() as rig:
        rig.show(3)
        rig.perception.listen()
        rig.perception.listen()
        assert rig.control.receive() == [FrameSeen(19.95, 3)]
