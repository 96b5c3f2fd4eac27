"""What docs/operations.md tells an operator to type works as it stands there."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from splitvla_cloud.settings import ServerSettings, credentials
from splitvla_edge.daemon.run import RunSettings
from splitvla_edge.link.grpc_link import GrpcLink
from splitvla_edge.link.security import Security
from splitvla_shared.config import load_config
from splitvla_shared.errors import ConfigError
from tests.fake_server import SPEC, FakeServicer, serving

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
BLOCKS: list[str] = re.findall(r"^```\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def _block(beginning: str) -> str:
    return next(block for block in BLOCKS if block.startswith(beginning))


def _there(folder: Path, example: Path | None) -> Path:
    """The file in this folder that an example names elsewhere."""
    assert example is not None
    return folder / example.name


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program")
def test_the_page_s_certificates_connect_a_robot_and_a_server_of_the_example_settings(tmp_path: Path) -> None:
    recipe = _block("openssl").replace("DNS:$name", "IP:127.0.0.1")
    subprocess.run(["bash", "-ec", recipe], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    theirs = load_config(ServerSettings, ROOT / "cloud/deploy/cloud.toml")
    ours = load_config(RunSettings, ROOT / "edge/deploy/edge.toml")
    cert, key, client_ca = (_there(tmp_path, path) for path in (theirs.tls_cert, theirs.tls_key, theirs.tls_client_ca))
    secrets = credentials(ServerSettings(tls_cert=cert, tls_key=key, tls_client_ca=client_ca))
    assert isinstance(secrets, grpc.ServerCredentials)
    other = tmp_path / "robot.key"
    with pytest.raises(ConfigError, match=r"gpu-host\.pem and tls_key .*robot\.key are no certificate and its"):
        credentials(ServerSettings(tls_cert=cert, tls_key=other, tls_client_ca=client_ca))
    with pytest.raises(ConfigError, match=r"tls_client_ca .*robot\.key has no certificate"):
        credentials(ServerSettings(tls_cert=cert, tls_key=key, tls_client_ca=other))
    robot = Security.from_files(*(_there(tmp_path, path) for path in (ours.tls_ca, ours.tls_cert, ours.tls_key)))
    with serving(FakeServicer(), credentials=secrets) as address, GrpcLink(address, security=robot) as link:
        assert link.describe(5.0).spec == SPEC


def test_the_page_s_times_are_settings(tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text(_block("[fallback]"), encoding="utf-8")
    settings = load_config(RunSettings, tmp_path / "edge.toml")
    assert settings.fallback.max_age_s(settings.dt_s, chunk_length=1) == 0.45


def test_stopping_the_robot_s_unit_signals_the_control_process_alone() -> None:
    """Perception would end of SIGTERM at once, with its records unwritten and its camera open."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(ROOT / "edge/deploy/splitvla-edge.service")
    assert unit["Service"]["KillMode"] == "mixed"
