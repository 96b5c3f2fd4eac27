"""What docs/operations.md tells an operator to type works as it stands there."""

from __future__ import annotations

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
from tests.fake_server import SPEC, FakeServicer, serving

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
BLOCKS: list[str] = re.findall(r"^```\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def _block(beginning: str) -> str:
    return next(block for block in BLOCKS if block.startswith(beginning))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program")
def test_the_page_s_certificates_connect_a_robot_and_a_server(tmp_path: Path) -> None:
    recipe = _block("openssl").replace("DNS:$name", "IP:127.0.0.1")
    subprocess.run(["bash", "-ec", recipe], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    server = ServerSettings(
        tls_cert=tmp_path / "gpu-host.pem", tls_key=tmp_path / "gpu-host.key", tls_client_ca=tmp_path / "ca.pem"
    )
    secrets = credentials(server)
    assert isinstance(secrets, grpc.ServerCredentials)
    robot = Security.from_files(*(tmp_path / name for name in ("ca.pem", "robot.pem", "robot.key")))
    with serving(FakeServicer(), credentials=secrets) as address, GrpcLink(address, security=robot) as link:
        assert link.describe(5.0).spec == SPEC


def test_the_page_s_times_are_settings(tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text(_block("[fallback]"), encoding="utf-8")
    settings = load_config(RunSettings, tmp_path / "edge.toml")
    assert settings.fallback.max_age_s(settings.dt_s, chunk_length=1) == 0.45
