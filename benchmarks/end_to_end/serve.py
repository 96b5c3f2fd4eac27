"""A baseline server: the whole model behind `POST /act` or openpi's websocket.

    python -m benchmarks.end_to_end.serve rest --checkpoint DIR --bundles DIR --listen 127.0.0.1:8000

It has no TLS and no authentication, like what it stands for: for a closed lab and a benchmark only.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.end_to_end.whole import ENGINES, EngineSettings, Whole, open_whole
from splitvla_shared.addresses import split_address
from splitvla_shared.command_line import run_command
from splitvla_shared.errors import ConfigError

if TYPE_CHECKING:
    import uvicorn


_KEEP_ALIVE_S = 600  # a round of all ways takes longer than uvicorn's 5 s: each call would connect anew


def rest_server(whole: Whole) -> uvicorn.Server:
    import uvicorn

    from benchmarks.end_to_end.rest import build_app

    return uvicorn.Server(uvicorn.Config(build_app(whole), log_level="error", timeout_keep_alive=_KEEP_ALIVE_S))


def _serve_rest(whole: Whole, listener: socket.socket) -> None:
    rest_server(whole).run(sockets=[listener])


def _serve_websocket(whole: Whole, listener: socket.socket) -> None:
    from benchmarks.end_to_end.websocket import serve_websocket

    serve_websocket(whole, listener)


KINDS: dict[str, Callable[[Whole, socket.socket], None]] = {"rest": _serve_rest, "websocket": _serve_websocket}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=tuple(KINDS))
    parser.add_argument("--checkpoint", type=Path, required=True, help="the unsplit checkpoint, for --engine eager")
    parser.add_argument("--bundles", type=Path, required=True, help="the folder that `split` made, for --engine split")
    parser.add_argument("--engine", choices=tuple(ENGINES), default="eager", help="PyTorch as users run it, or ours")
    parser.add_argument("--unnorm-key", metavar="KEY")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.set_defaults(command=_serve)
    return run_command(parser, None)


def _serve(arguments: argparse.Namespace) -> int:
    host, port = split_address(arguments.listen)
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise ConfigError(f"can't listen on {arguments.listen}: {error.strerror}; choose another port") from error
    settings = EngineSettings(
        engine=arguments.engine,
        checkpoint=arguments.checkpoint,
        bundles=arguments.bundles,
        unnorm_key=arguments.unnorm_key,
        precision=arguments.precision,
        device=arguments.device,
        threads=arguments.threads,
    )
    whole = open_whole(settings)
    print(f"ready on {host}:{listener.getsockname()[1]}", flush=True)
    KINDS[arguments.kind](whole, listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())
