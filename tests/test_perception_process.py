"""What the perception process is told before it works: its settings, and that its turn has come."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from splitvla_edge.daemon.perception import PerceptionSettings
from splitvla_edge.daemon.perception_process import read_settings, wait_for_turn
from splitvla_edge.robots.replay import ReplaySettings
from splitvla_shared.errors import ConfigError


def test_settings_travel_as_json(tmp_path: Path) -> None:
    settings = PerceptionSettings(
        tmp_path,
        "host:1",
        "pick ü",
        scheme="int4",
        standby="loaded",
        replay=ReplaySettings(tmp_path, fps=5.0, loop=True),
    )
    assert read_settings(io.StringIO(settings.to_json())) == settings


@pytest.mark.parametrize("text", ["", "[]", "3", '{"bundle": 3}', '{"unknown": 1}', "{}"])
def test_settings_that_are_not_the_daemon_s_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_settings(io.StringIO(text))


@pytest.mark.parametrize(("said", "first"), [("17\n", 17), ("", None)])
def test_a_perception_process_waits_for_its_turn_or_for_the_end_of_the_control_process(
    said: str, first: int | None
) -> None:
    assert wait_for_turn(io.StringIO(said)) == first


def test_a_turn_without_a_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="frame's number"):
        wait_for_turn(io.StringIO("now\n"))
