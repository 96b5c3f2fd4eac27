"""What the command line says of a policy, and what is left to the policy's own defaults."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import pytest

from splitvla_edge import EdgePolicy
from splitvla_edge.policy_options import PolicyOptions, add_policy_options, read_policy_options
from splitvla_shared.errors import ConfigError


def _read(*arguments: str) -> PolicyOptions:
    parser = argparse.ArgumentParser()
    add_policy_options(parser)
    return read_policy_options(parser.parse_args(arguments))


def test_what_is_not_given_is_left_to_the_policy() -> None:
    assert _read() == {"security": None}


def test_what_is_given_becomes_a_keyword_of_open() -> None:
    given = _read("--unnorm-key", "bridge_orig", "--scheme", "int8", "--threads", "2", "--camera-transform", "none")
    assert given == {
        "security": None,
        "unnorm_key": "bridge_orig",
        "scheme": "int8",
        "threads": 2,
        "camera_transform": "none",
    }


def test_the_options_are_the_keywords_of_open() -> None:
    parameters = inspect.signature(EdgePolicy.open).parameters.values()
    keywords = {each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
    assert set(PolicyOptions.__annotations__) == keywords


def test_a_tls_file_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="tls_cert, tls_key"):
        _read("--tls-ca", "ca.pem")


@pytest.mark.parametrize(
    ("server", "hedge_ms", "reason"),
    [
        ("127.0.0.1:1", 120, r"hedge_ms is 120; it needs two servers: --server A,B"),
        ("127.0.0.1:1,127.0.0.1:2", 0.0, r"hedge_ms is 0; expected above 0"),
        ("127.0.0.1:1,127.0.0.1:2", -120.0, r"hedge_ms is -120; expected above 0"),
        ("127.0.0.1:1,127.0.0.1:2", float("nan"), r"hedge_ms is nan; expected above 0"),
    ],
)
def test_a_hedge_that_makes_no_sense_is_refused_before_anything_is_loaded(
    tmp_path: Path, server: str, hedge_ms: float, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        EdgePolicy.open(tmp_path / "no-bundle", server, hedge_ms=hedge_ms)
