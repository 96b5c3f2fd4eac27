"""What `serve-policy` refuses before it serves anybody, in one line each."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import run_command
from splitvla_edge.policy_options import PolicyOptions
from splitvla_edge.policy_server import command
from splitvla_edge.policy_server.command import serve_policy
from splitvla_edge.policy_server.options import PolicyServerSettings
from splitvla_shared.errors import ConfigError


@pytest.mark.parametrize("listen", ["0.0.0.0:8000", "[::]:8000", "robot.lab:8000"])
def test_another_address_than_loopback_needs_the_word(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"neither TLS nor passwords.*--insecure-lab"):
        PolicyServerSettings(Path("b"), "h:1", listen=listen)
    assert not PolicyServerSettings(Path("b"), "h:1", listen=listen, insecure_lab=True).loopback


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"deadline_ms": 0.0}, "deadline_ms is 0"),
        ({"deadline_ms": float("nan")}, "deadline_ms is nan"),
        ({"cameras": ("a", "a")}, "each key once"),
        ({"cameras": ("a", "")}, "each key once"),
        ({"listen": "8000"}, "HOST:PORT"),
    ],
)
def test_settings_that_make_no_sense_are_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        PolicyServerSettings(Path("b"), "h:1", **changes)


def test_a_port_in_use_is_said_before_a_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"can't listen on .*in use.*--listen"):
            serve_policy(PolicyServerSettings(Path("no bundle"), "h:1", listen=listen))


def test_more_cameras_than_the_model_takes_are_said_before_a_request_fails_for_them(tiny_bundles: Path) -> None:
    key = next(iter(json.loads((tiny_bundles / "edge" / "statistics.json").read_text(encoding="utf-8"))))
    options = PolicyOptions(unnorm_key=key)
    settings = PolicyServerSettings(
        tiny_bundles / "edge", "127.0.0.1:9", listen="127.0.0.1:0", cameras=("a", "b"), options=options
    )
    with pytest.raises(ConfigError, match=r"cameras names 2 pictures, a, b; this model takes 1 at most"):
        serve_policy(settings)


def test_without_its_libraries_it_says_which_pip_command_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs msgpack, starlette.*pip install 'splitvla\[policy-server\]'"):
        serve_policy(PolicyServerSettings(Path("b"), "h:1"))


def test_a_network_address_is_warned_of_and_a_bad_bundle_is_one_line(tmp_path: Path) -> None:
    options = ["--bundle", str(tmp_path), "--server", "h:1", "--listen", "0.0.0.0:0", "--insecure-lab"]
    done = run_command("splitvla_edge", ["serve-policy", *options])
    assert done.returncode == 3
    warning, error = done.stderr.splitlines()
    assert warning.startswith("splitvla-edge: INSECURE: 0.0.0.0:0 has no TLS")
    assert error.startswith("splitvla-edge: error: ")
    assert "is not a bundle" in error
