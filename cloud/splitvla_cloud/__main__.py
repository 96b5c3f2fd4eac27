"""splitvla-cloud: the GPU host's commands. The only place on this side that reads configuration and constructs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from splitvla_shared import __version__
from splitvla_shared.config import describe_config, load_config
from splitvla_shared.errors import SplitVLAError

PRECISIONS = ("fp32", "bf16", "int8", "nf4")
# Options of `serve` that are settings of the same name.
_SERVE_OPTIONS = (
    *("bundle", "precision", "listen", "device", "tls_cert", "tls_key", "tls_client_ca"),
    *("bind_wait_s", "drain_s", "insecure_lab"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, or the error's own after one line on standard error."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except SplitVLAError as error:
        print(f"splitvla-cloud: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="splitvla-cloud", description="SplitVLA on the GPU host")
    parser.add_argument("--version", action="version", version=f"splitvla {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    split = commands.add_parser("split", help="turn an OpenVLA checkpoint into an edge and a cloud bundle")
    split.add_argument("checkpoint", type=Path, help="folder of a Hugging Face OpenVLA checkpoint (safetensors)")
    split.add_argument("--out", type=Path, required=True, help="folder to make; holds edge/ and cloud/ afterwards")
    split.set_defaults(command=_split)

    serve = commands.add_parser("serve", help="serve the backbone of a cloud bundle over gRPC")
    serve.add_argument("--bundle", help="the cloud half that `split` made")
    serve.add_argument("--precision", choices=PRECISIONS, help="of the backbone's weights (bf16)")
    serve.add_argument("--listen", metavar="HOST:PORT", help="address to serve on (127.0.0.1:50051); port 0 picks one")
    serve.add_argument("--device", help="auto, cpu, cuda or cuda:N (auto)")
    serve.add_argument(
        "--tls-cert", metavar="PEM", help="the server's certificate; needs --tls-key and --tls-client-ca"
    )
    serve.add_argument("--tls-key", metavar="PEM", help="the server's private key")
    serve.add_argument("--tls-client-ca", metavar="PEM", help="the authority whose clients may connect")
    serve.add_argument("--bind-wait-s", type=float, metavar="S", help="load, then wait this long for a port in use (0)")
    serve.add_argument("--drain-s", type=float, metavar="S", help="time that robots have to leave after SIGTERM (2)")
    serve.add_argument("--insecure-lab", action="store_true", default=None, help="serve a network without TLS")
    serve.add_argument("--config", type=Path, metavar="TOML", help="settings file; options given here win over it")
    serve.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; may be repeated")
    serve.set_defaults(command=_serve)
    return parser


def _split(arguments: argparse.Namespace) -> int:
    from splitvla_cloud.progress import TerminalProgress
    from splitvla_cloud.split import split

    with TerminalProgress(sys.stderr) as progress:
        spec = split(arguments.checkpoint, arguments.out, progress=progress)
    print(f"{spec.name}: {spec.patches} patches of {spec.embed_dim}, fingerprint {spec.fingerprint[:16]}")
    print(f"edge bundle  {arguments.out / 'edge'}\ncloud bundle {arguments.out / 'cloud'}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from splitvla_cloud.server import ServerSettings, serve

    settings = load_config(
        ServerSettings, arguments.config, arguments.set, {name: getattr(arguments, name) for name in _SERVE_OPTIONS}
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for line in describe_config(settings):
        print(f"  {line}")
    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
