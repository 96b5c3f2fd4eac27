"""What the command line says of a policy, and what is left to the policy's own defaults."""

from __future__ import annotations

import argparse
import inspect

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
