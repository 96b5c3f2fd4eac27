"""The command line of the latency benchmark: who is measured, how much, and where the results go."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.frames import CLIP, INSTRUCTION
from benchmarks.latency import alternatives, compare, results
from benchmarks.latency.plan import FULL, QUICK, Plan, Watch
from benchmarks.latency.regions import parse_what_if
from benchmarks.latency.results import Recorded, Section
from benchmarks.latency.run import ALL, Request, Run
from benchmarks.latency.site import Baselines, Site, start_here
from benchmarks.link.synthetic import FOLDER as TRACES
from benchmarks.processes import ProcessLost
from splitvla_edge.link import check_address
from splitvla_edge.security import Security
from splitvla_shared.command_line import run_command
from splitvla_shared.errors import ConfigError, Unreachable

_PROG = "python -m benchmarks.latency"
_SEED = 0
_WORSE = 1  # exit code: slower than --compare, or a way that promised the reference's tokens gave others
_OWN_MODEL = "a small model with openvla-7b's bytes"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=_PROG, description="Latency of the split and of its alternatives: docs in benchmarks/RESULTS.md"
    )
    parser.add_argument("--full", action="store_true", help="more of everything (quick: below three minutes here)")
    parser.add_argument("--sections", default=",".join(ALL), help=f"any of {','.join(ALL)} (all)")
    parser.add_argument("--soak-minutes", type=float, default=0.0, metavar="N", help="four robots for so long (0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="tables, pictures and numbers (runs/bench-<time>)")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="results.json of an earlier run; 1 when slower")
    parser.add_argument(
        "--what-if", metavar="NAME=MS,...", help="your machines: robot-encode=,server-encode=,backbone="
    )
    parser.add_argument("--frames", type=Path, default=CLIP, help="a folder of images or a video (the shipped clip)")
    parser.add_argument("--instruction", default=INSTRUCTION)
    parser.add_argument("--traces", type=Path, default=TRACES, metavar="DIR", help="link traces (the shipped ones)")
    parser.add_argument("--unnorm-key", metavar="KEY")
    parser.add_argument("--threads", type=int, default=1, help="of each side's arithmetic (1)")
    here = parser.add_argument_group("here: this machine plays the robot and every server")
    here.add_argument("--checkpoint", type=Path, metavar="DIR", help="an OpenVLA checkpoint (a small one made for it)")
    here.add_argument("--precision", default="fp32", help="of every model (fp32)")
    there = parser.add_argument_group("there: this robot against that server")
    there.add_argument("--server", metavar="HOST:PORT")
    there.add_argument("--bundle", type=Path, metavar="DIR", help="the edge half")
    there.add_argument("--encoder", default="fp32", metavar="NAME")
    there.add_argument("--provider", default="auto", metavar="NAME")
    there.add_argument("--rest", metavar="HOST:PORT", help="of `python -m benchmarks.latency.serve rest`")
    there.add_argument("--websocket", metavar="HOST:PORT", help="of `... serve websocket`")
    there.add_argument("--websocket-split-engine", metavar="HOST:PORT", help="of `... serve websocket --engine split`")
    for name, what in (("ca", "the authority"), ("cert", "the robot's certificate"), ("key", "its private key")):
        there.add_argument(f"--tls-{name}", metavar="PEM", help=what)
    parser.set_defaults(command=_bench, argv=list(sys.argv[1:] if argv is None else argv))
    return run_command(parser, argv)


def _bench(arguments: argparse.Namespace) -> int:
    old = results.read_run(arguments.compare) if arguments.compare else None  # before minutes are spent
    request = _request(arguments)
    command = shlex.join(["python", "-m", "benchmarks.latency", *arguments.argv])
    with Watch() as watch, _site(arguments, watch) as site:
        yardstick_ms = compare.yardstick_ms()
        run = Run(request, site, watch)
        try:
            run.run()
        except ProcessLost as error:
            raise Unreachable(str(error)) from error
    recorded = _write(run.sections, request.out, command, yardstick_ms)
    wrong = alternatives.differing(run.measured)
    if wrong:
        print(f"{_PROG}: NOT THE SAME TOKENS as {run.measured[0].name}: {', '.join(wrong)}", file=sys.stderr)
    return _WORSE if _compare(old, recorded) or wrong else 0


def _request(arguments: argparse.Namespace) -> Request:
    sections = tuple(name.strip() for name in arguments.sections.split(",") if name.strip())
    if unknown := set(sections) - set(ALL):
        raise ConfigError(f"--sections {','.join(sorted(unknown))}: unknown; any of {','.join(ALL)}")
    if not 0 <= arguments.soak_minutes <= 24 * 60:
        raise ConfigError(f"--soak-minutes is {arguments.soak_minutes}; expected 0..1440")
    if not 1 <= arguments.threads <= 1024:
        raise ConfigError(f"--threads is {arguments.threads}; expected 1..1024")
    plan: Plan = dataclasses.replace(FULL if arguments.full else QUICK, soak_minutes=arguments.soak_minutes)
    return Request(
        plan=plan,
        out=arguments.out or Path("runs") / time.strftime("bench-%Y%m%d-%H%M%S"),
        model=arguments.server or (arguments.checkpoint.name if arguments.checkpoint else _OWN_MODEL),
        sections=sections,
        frames=arguments.frames,
        instruction=arguments.instruction,
        traces=arguments.traces,
        what_if=parse_what_if(arguments.what_if) if arguments.what_if else None,
    )


@contextlib.contextmanager
def _site(arguments: argparse.Namespace, watch: Watch) -> Iterator[Site]:
    if (arguments.server is None) != (arguments.bundle is None):
        raise ConfigError("--server and --bundle belong together: the server, and the edge half of the model it serves")
    if arguments.server is not None:
        for address in (arguments.server, arguments.rest, arguments.websocket, arguments.websocket_split_engine):
            if address is not None:
                check_address(address)
        yield Site(
            edge_bundle=arguments.bundle,
            server=arguments.server,
            unnorm_key=arguments.unnorm_key,
            threads=arguments.threads,
            encoder=arguments.encoder,
            provider=arguments.provider,
            security=Security.from_files(arguments.tls_ca, arguments.tls_cert, arguments.tls_key),
            baselines=Baselines(arguments.rest, arguments.websocket, arguments.websocket_split_engine),
        )
        return
    from splitvla_cloud.split import split

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with watch.phase("split a checkpoint", 20):
            checkpoint = arguments.checkpoint or _own_checkpoint(folder / "checkpoint")
            split(checkpoint, folder / "bundles")
        key = arguments.unnorm_key or (None if arguments.checkpoint else "widowx_tiny")
        with contextlib.ExitStack() as stack:
            with watch.phase("start four servers", 20):
                site = stack.enter_context(
                    start_here(
                        checkpoint,
                        folder / "bundles",
                        unnorm_key=key,
                        threads=arguments.threads,
                        precision=arguments.precision,
                        whole=True,
                    )
                )
            yield site


def _own_checkpoint(path: Path) -> Path:
    from benchmarks.checkpoint import PRESETS, write_checkpoint

    write_checkpoint(path, seed=_SEED, sizes=PRESETS["wire"])
    return path


def _write(sections: Sequence[Section], out: Path, command: str, yardstick_ms: float) -> Recorded:
    for section in sections:
        results.write_section(section, out, command, _SEED)
        print(section.markdown(command, _SEED))
    recorded = results.write_run(sections, out, command, yardstick_ms)
    print(f"tables, numbers and pictures: {out}")
    return recorded


def _compare(old: Recorded | None, new: Recorded) -> bool:
    """True when something is slower than it was."""
    if old is None:
        return False
    changes = compare.compare(old, new)
    print(compare.render(changes, old, new))
    return bool(compare.regressions(changes))


if __name__ == "__main__":
    sys.exit(main())
