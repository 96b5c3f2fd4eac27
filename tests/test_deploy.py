"""The example settings are settings, and the units start commands that exist."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path

from splitvla_cloud.__main__ import build_parser as build_cloud_parser
from splitvla_cloud.settings import ServerSettings
from splitvla_edge.__main__ import build_parser as build_edge_parser
from splitvla_edge.daemon import RunSettings
from splitvla_shared.config import load_config

ROOT = Path(__file__).resolve().parent.parent


def _exec_start(unit: Path) -> list[str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return shlex.split(parser["Service"]["ExecStart"])


def test_the_robot_s_example_settings_load() -> None:
    settings = load_config(RunSettings, ROOT / "edge/deploy/edge.toml")
    assert settings.camera.device == "/dev/video0"
    assert settings.fallback.hold_to_stop_s == 5.0


def test_the_server_s_example_settings_load() -> None:
    assert load_config(ServerSettings, ROOT / "cloud/deploy/cloud.toml").precision == "bf16"


def test_the_units_start_commands_that_exist() -> None:
    program, *arguments = _exec_start(ROOT / "edge/deploy/splitvla-edge.service")
    assert program.endswith("/splitvla-edge")
    assert build_edge_parser().parse_args(arguments).config == Path("/etc/splitvla/edge.toml")
    program, *arguments = _exec_start(ROOT / "cloud/deploy/splitvla-cloud.service")
    assert program.endswith("/splitvla-cloud")
    assert build_cloud_parser().parse_args(arguments).config == Path("/etc/splitvla/cloud.toml")
