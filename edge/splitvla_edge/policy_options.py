"""What an EdgePolicy may be opened with, as keywords and as options of a command line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, TypedDict, cast

from splitvla_shared.errors import ConfigError

if TYPE_CHECKING:  # every command imports this module for its options, and most of them need no more than that
    from splitvla_edge.link.security import Security
    from splitvla_shared.nouns import Scheme


class PolicyOptions(TypedDict, total=False):
    """The keywords of `EdgePolicy.open`, which says what they mean and what they are when left out."""

    unnorm_key: str | None
    robot: str
    scheme: Scheme | str
    image_pipeline: str | None
    camera_transform: str
    action_transform: str
    security: Security | None
    threads: int | None
    encoder: str
    provider: str
    hedge_ms: float | None


def check_hedge(hedge_ms: float | None, server: str | None) -> None:
    """hedge_ms: None for never. server: as `--server` has it; None where it is not known yet. Raises ConfigError."""
    if hedge_ms is None:
        return
    if not hedge_ms > 0:  # also NaN
        raise ConfigError(f"hedge_ms is {hedge_ms:g}; expected above 0")
    if server is not None and "," not in server:
        raise ConfigError(f"hedge_ms is {hedge_ms:g}; it needs two servers: --server A,B")


def add_policy_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unnorm-key", metavar="KEY", help="the dataset whose statistics scale the action")
    parser.add_argument("--scheme", help="payload scheme or codec rung, e.g. int8, db36: the best to send (bf16)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the encoder (all cores)")
    parser.add_argument("--encoder", metavar="NAME", help="fp32, or fp16 or int8 where the bundle has them (fp32)")
    parser.add_argument("--provider", metavar="NAME", help="auto, tensorrt, cuda or cpu, whatever passes a test (auto)")
    parser.add_argument("--image-pipeline", metavar="NAME", help="hf, eval or eval-crop (the bundle's own)")
    parser.add_argument("--camera-transform", metavar="NAME", help="none or rotate180 (none)")
    parser.add_argument("--action-transform", metavar="NAME", help="none, libero or simpler (none)")
    parser.add_argument("--tls-ca", metavar="PEM", help="the authority that signed the server's certificate")
    parser.add_argument("--tls-cert", metavar="PEM", help="the robot's certificate")
    parser.add_argument("--tls-key", metavar="PEM", help="the robot's private key")


def read_policy_options(arguments: argparse.Namespace) -> PolicyOptions:
    """Those that were given; the rest is left to `EdgePolicy.open`. Raises ConfigError where a TLS file is missing."""
    from splitvla_edge.link.security import Security

    given = {name: getattr(arguments, name) for name in PolicyOptions.__annotations__ if hasattr(arguments, name)}
    security = Security.from_files(arguments.tls_ca, arguments.tls_cert, arguments.tls_key)
    return cast(
        "PolicyOptions", {"security": security} | {name: value for name, value in given.items() if value is not None}
    )
