"""The example settings are settings, and the units start commands that exist."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path

from splitvla_cloud.__main__ import build_parser as build_cloud_parser
from splitvla_cloud.settings import ServerSettings
from splitvla_edge.__main__ import build_parser as build_edge_parser
from splitvla_edge.daemon.run import RunSettings
from splitvla_edge.encoding.engine_cache import user_cache_root
from splitvla_shared.config import load_config
from splitvla_shared.errors import BundleError, ConfigError, ServerFault

ROOT = Path(__file__).resolve().parent.parent


EDGE_UNIT = ROOT / "edge/deploy/splitvla-edge.service"
CLOUD_UNIT = ROOT / "cloud/deploy/splitvla-cloud.service"


def _service(unit: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return parser["Service"]


def test_the_robot_s_example_settings_load() -> None:
    settings = load_config(RunSettings, ROOT / "edge/deploy/edge.toml")
    assert settings.camera.device == "/dev/video0"
    assert settings.fallback.hold_to_stop_s == 5.0


def test_the_server_s_example_settings_load() -> None:
    assert load_config(ServerSettings, ROOT / "cloud/deploy/cloud.toml").precision == "bf16"


def test_the_units_start_commands_that_exist() -> None:
    program, *arguments = shlex.split(_service(EDGE_UNIT)["ExecStart"])
    assert program.endswith("/splitvla-edge")
    assert build_edge_parser().parse_args(arguments).config == Path("/etc/splitvla/edge.toml")
    program, *arguments = shlex.split(_service(CLOUD_UNIT)["ExecStart"])
    assert program.endswith("/splitvla-cloud")
    assert build_cloud_parser().parse_args(arguments).config == Path("/etc/splitvla/cloud.toml")


def test_the_server_is_not_started_again_where_a_person_has_to_mend_something_first() -> None:
    """Wrong settings (a PEM file that is not there) and a damaged bundle are the same at the next start."""
    final = {int(code) for code in _service(CLOUD_UNIT)["RestartPreventExitStatus"].split()}
    assert final == {ConfigError.exit_code, BundleError.exit_code}
    assert ServerFault.exit_code not in final


def test_a_restarted_server_binds_at_once_because_systemd_has_stopped_the_old_one() -> None:
    assert load_config(ServerSettings, ROOT / "cloud/deploy/cloud.toml").bind_wait_s == 0.0


def test_engines_that_take_minutes_are_kept_where_the_robot_s_unit_may_write() -> None:
    service = _service(EDGE_UNIT)
    assert service["ProtectHome"] == "true"
    name, _, value = service["Environment"].partition("=")
    assert user_cache_root({name: value}) == Path("/var/cache") / service["CacheDirectory"]


def test_what_the_server_compiles_is_kept_where_its_unit_may_write() -> None:
    service = _service(CLOUD_UNIT)
    home = f"/var/cache/{service['CacheDirectory']}"
    set_there = dict(pair.split("=", 1) for pair in service["Environment"].split())
    assert set(set_there) == {"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"}
    assert all(folder.startswith(home) for folder in set_there.values())


def test_the_server_s_example_settings_never_serve_on_a_cpu_because_the_driver_is_late() -> None:
    assert load_config(ServerSettings, ROOT / "cloud/deploy/cloud.toml").device == "cuda"
