"""Mutual TLS of the link: it connects with the right files, and says what is wrong with any other."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import pytest

from splitvla_edge.link.grpc_link import GrpcLink
from splitvla_edge.link.security import Security
from splitvla_shared.errors import ConfigError, Unreachable
from tests.fake_server import SPEC, FakeServicer, serving


def _server_credentials(folder: Path) -> grpc.ServerCredentials:
    pair = ((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())
    return grpc.ssl_server_credentials([pair], (folder / "ca.pem").read_bytes(), require_client_auth=True)


def test_mutual_tls_connects(certificates: Path) -> None:
    security = Security(certificates / "ca.pem", certificates / "robot.pem", certificates / "robot.key")
    with (
        serving(FakeServicer(), credentials=_server_credentials(certificates)) as address,
        GrpcLink(address, security=security) as link,
    ):
        assert link.describe(5.0).spec == SPEC


def test_without_tls_a_tls_server_is_unreachable_and_the_message_says_what_to_check(certificates: Path) -> None:
    with (
        serving(FakeServicer(), credentials=_server_credentials(certificates)) as address,
        GrpcLink(address) as link,
        pytest.raises(Unreachable, match="both sides use TLS or neither"),
    ):
        link.describe(0.5)


def test_a_bad_tls_file_is_named(certificates: Path, tmp_path: Path) -> None:
    pair = certificates / "robot.pem", certificates / "robot.key"
    (tmp_path / "ca.pem").write_text("hello")
    with pytest.raises(ConfigError, match=r"tls_ca .*ca\.pem is not PEM"):
        GrpcLink("h:1", security=Security(tmp_path / "ca.pem", *pair))
    with pytest.raises(ConfigError, match=r"tls_ca .*no\.pem: No such file"):
        GrpcLink("h:1", security=Security(tmp_path / "no.pem", *pair))


def test_a_pipe_which_can_be_read_once_is_refused_and_not_waited_for(certificates: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key")
    security = Security(certificates / "ca.pem", certificates / "robot.pem", tmp_path / "key")
    with pytest.raises(ConfigError, match=r"tls_key .*key is no regular file"):
        security.read()


def test_how_strong_a_key_must_be_is_grpcs_to_say(certificates: Path) -> None:
    security = Security(certificates / "weak.pem", certificates / "weak.pem", certificates / "weak.key")
    assert security.read()[2] == (certificates / "weak.pem").read_bytes()


@pytest.mark.parametrize(
    ("ca", "cert", "key", "message"),
    [
        ("ca.pem", "robot.key", "robot.pem", r"tls_cert .*robot\.key and tls_key .*robot\.pem are no certificate"),
        ("ca.pem", "robot.pem", "server.key", r"of two machines"),
        ("ca.pem", "robot.pem", "locked.key", r"its unencrypted key"),
        ("ca.key", "robot.pem", "robot.key", r"tls_ca .*ca\.key has no certificate"),
    ],
)
def test_tls_files_that_are_mixed_up_are_named_and_no_server_that_is_away(
    certificates: Path, ca: str, cert: str, key: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        GrpcLink("h:1", security=Security(certificates / ca, certificates / cert, certificates / key))


def test_a_certificate_of_another_authority_is_what_the_message_says_to_check(certificates: Path) -> None:
    security = Security(certificates / "robot.pem", certificates / "robot.pem", certificates / "robot.key")
    with (
        serving(FakeServicer(), credentials=_server_credentials(certificates)) as address,
        GrpcLink(address, security=security) as link,
        pytest.raises(Unreachable, match="certificates of both are in force and of the other's authority"),
    ):
        link.describe(0.5)


def test_tls_settings_come_together_or_not_at_all() -> None:
    assert Security.from_files(None, "", None) is None
    assert Security.from_files("a", "b", "c") == Security(Path("a"), Path("b"), Path("c"))
    with pytest.raises(ConfigError, match=r"missing: tls_key$"):
        Security.from_files("a", "b", None)


def test_a_robot_that_signed_its_own_certificate_is_turned_away(certificates: Path) -> None:
    security = Security(certificates / "ca.pem", certificates / "other.pem", certificates / "other.key")
    with (
        serving(FakeServicer(), credentials=_server_credentials(certificates)) as address,
        GrpcLink(address, security=security) as link,
        pytest.raises(Unreachable),
    ):
        link.describe(0.5)
