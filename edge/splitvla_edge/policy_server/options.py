"""Options of `serve-policy`, and what they mean together."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from splitvla_edge.policy_options import PolicyOptions, add_policy_options, read_policy_options
from splitvla_shared.addresses import is_loopback, split_address
from splitvla_shared.errors import ConfigError

_DEADLINE_MS = (1.0, 600_000.0)


@dataclass(frozen=True, slots=True)
class PolicyServerSettings:
    """deadline_ms: from a request's arrival to its action. cameras: see `openpi.read_observation`.

    accept_clipped: give out actions of which tokens had to be clipped into the bins. insecure_lab: listen on an address
    that others can reach. options: what the policy is opened with.
    """

    bundle: Path
    server: str
    listen: str = "127.0.0.1:8000"
    deadline_ms: float = 1000.0
    cameras: tuple[str, ...] = ()
    accept_clipped: bool = False
    insecure_lab: bool = False
    options: PolicyOptions = field(default_factory=PolicyOptions)

    def __post_init__(self) -> None:
        low, high = _DEADLINE_MS
        if not low <= self.deadline_ms <= high:
            raise ConfigError(f"deadline_ms is {self.deadline_ms}; expected {low:g}..{high:g}")
        if len(set(self.cameras)) < len(self.cameras) or not all(self.cameras):
            raise ConfigError(f"cameras is {','.join(self.cameras)!r}; name each key once, with commas between")
        if not self.loopback and not self.insecure_lab:
            raise ConfigError(
                f"{self.listen} can be reached from the network, and this side has neither TLS nor passwords: anybody "
                "there could see what the robot sees and wear it out; listen on 127.0.0.1, or give --insecure-lab in a "
                "closed lab"
            )

    @property
    def loopback(self) -> bool:
        return is_loopback(split_address(self.listen)[0])


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Answer the robot's own program on localhost, in the protocol that it speaks already: OpenVLA's POST /act and "
        "openpi's websocket, on one port. docs/clients.md says what to change there, and what the errors are."
    )
    parser.add_argument("--bundle", type=Path, required=True, help="the edge half that `split` made")
    parser.add_argument(
        "--server", required=True, metavar="HOST:PORT", help="or several, with commas between: the first is preferred"
    )
    parser.add_argument("--hedge-ms", type=float, metavar="MS", help="ask a second server after this long (never)")
    parser.add_argument("--listen", default="127.0.0.1:8000", metavar="HOST:PORT", help="for clients (127.0.0.1:8000)")
    parser.add_argument("--deadline-ms", type=float, default=1000.0, metavar="MS", help="for an answer (1000)")
    parser.add_argument(
        "--cameras", default="", metavar="KEY,KEY", help="openpi: where the pictures are (the usual names)"
    )
    parser.add_argument("--accept-clipped", action="store_true", help="give out clipped action tokens too")
    parser.add_argument("--insecure-lab", action="store_true", help="listen on other addresses than this machine's own")
    add_policy_options(parser)


def read_settings(arguments: argparse.Namespace) -> PolicyServerSettings:
    """Raises ConfigError."""
    return PolicyServerSettings(
        bundle=arguments.bundle,
        server=arguments.server,
        listen=arguments.listen,
        deadline_ms=arguments.deadline_ms,
        cameras=tuple(key.strip() for key in arguments.cameras.split(",")) if arguments.cameras else (),
        accept_clipped=arguments.accept_clipped,
        insecure_lab=arguments.insecure_lab,
        options=read_policy_options(arguments),
    )
