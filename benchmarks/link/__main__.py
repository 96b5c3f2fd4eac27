"""python -m benchmarks.link: the proxy by itself, for demos and for trying a real robot against a bad link."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.link.conditions import Bursts, Conditions
from benchmarks.link.connection import UP
from benchmarks.link.proxy import LinkProxy
from benchmarks.link.synthetic import PROCESSES, path_of
from benchmarks.link.traces import TraceError, read_rates

_COMMANDS = "partition | heal | reset | half-open | rate MBPS | delay MS | status"


def build_parser() -> argparse.ArgumentParser:
    epilog = f"Lines on standard input change the link: {_COMMANDS}"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.link", description=__doc__, epilog=epilog)
    parser.add_argument("--listen", type=_address, required=True, metavar="HOST:PORT", help="where the robot connects")
    parser.add_argument("--to", type=_address, required=True, metavar="HOST:PORT", help="the server")
    parser.add_argument("--rate-mbps", type=float, metavar="N", help="both ways, Mbit/s (no limit)")
    parser.add_argument("--trace", metavar="FILE", help=f"rate of the uplink: a file, or {', '.join(PROCESSES)}")
    parser.add_argument("--delay-ms", type=float, default=0.0, metavar="MS", help="one way (0)")
    parser.add_argument("--jitter-ms", type=float, default=0.0, metavar="MS", help="sigma (0)")
    parser.add_argument("--loss", type=float, default=0.0, metavar="SHARE", help="of packets, 0..1 (0)")
    parser.add_argument(
        "--bursts", type=float, nargs=3, metavar=("EVERY_S", "LENGTH_S", "EXTRA_MS"), help="of delay, both ways"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run until standard input ends or SIGINT; lines on standard input change the link."""
    arguments = build_parser().parse_args(argv)
    try:
        down = Conditions(
            rate_mbps=arguments.rate_mbps,
            delay_ms=arguments.delay_ms,
            jitter_ms=arguments.jitter_ms,
            loss=arguments.loss,
            bursts=Bursts(*arguments.bursts) if arguments.bursts else None,
        )
        trace = None if arguments.trace is None else read_rates(_trace_path(arguments.trace))
    except (TraceError, ValueError) as error:
        print(f"link: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with LinkProxy(arguments.to, up=down, down=down, listen=arguments.listen, seed=arguments.seed) as link:
        if trace is not None:
            link.set_rate(trace, UP)
        print(f"link: {link.address} -> {arguments.to[0]}:{arguments.to[1]}; {_COMMANDS}", flush=True)
        try:
            for line in sys.stdin:
                _obey(link, line.split())
        except KeyboardInterrupt:
            pass
    return 0


def _obey(link: LinkProxy, words: list[str]) -> None:
    try:
        match words:
            case []:
                pass
            case ["partition"]:
                link.partition()
            case ["heal"]:
                link.heal()
            case ["reset"]:
                link.reset()
            case ["half-open"]:
                link.half_open()
            case ["rate", mbps]:
                link.set_rate(float(mbps))
            case ["delay", ms]:
                link.change(delay_ms=float(ms))
            case ["status"]:
                print(f"link: {link.counters()}", flush=True)
            case _:
                print(f"link: unknown command; {_COMMANDS}", file=sys.stderr)
    except ValueError as error:
        print(f"link: {error}", file=sys.stderr)


def _trace_path(name: str) -> Path:
    return path_of(name) if name in PROCESSES else Path(name)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not int(port) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT")
    return host, int(port)


if __name__ == "__main__":
    sys.exit(main())
