"""The latency benchmark: how fast, how many bytes, and whether the split is the right choice at all.

    python benchmarks/latency.py                                          everything here, on a small model
    python benchmarks/latency.py --server HOST:PORT --bundle bundles/edge this robot against that server
    python -m benchmarks.latency ...                                      the same, from the checkout's folder

This file is the command line: who is measured, how much, and where the results go. The parts are in end_to_end/.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # run by its path: neither this process nor its children would find the package that it is in
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (sys.path[0], os.environ.get("PYTHONPATH"))))

from benchmarks.end_to_end import alternatives, compare, results
from benchmarks.end_to_end.link_tables import read_traces
from benchmarks.end_to_end.plan import FULL, QUICK, Watch
from benchmarks.end_to_end.regions import parse_what_if
from benchmarks.end_to_end.results import Recorded, Section
from benchmarks.end_to_end.run import ALL, THERE, Request, Run
from benchmarks.end_to_end.site import Baselines, Site, start_here
from benchmarks.end_to_end.trained_policy import calibrate_halves
from benchmarks.frames import CLIP, INSTRUCTION
from benchmarks.link.synthetic import FOLDER as TRACES
from benchmarks.processes import ProcessLost
from splitvla_edge.link.grpc_link import GrpcLink, check_address
from splitvla_edge.link.security import Security
from splitvla_edge.robots.replay import open_source
from splitvla_shared.bundle import open_bundle
from splitvla_shared.command_line import run_command
from splitvla_shared.errors import ConfigError, SplitVLAError, Unreachable

_PROG = "python -m benchmarks.latency"
_SEED = 0
_UNSTEADY = 1.5  # speeds before and after a run that are so far apart make it worth little
_SHORTEST_SOAK = 0.2  # minutes: fewer samples give no slope
_WORSE = 1  # exit code: slower than --compare, or a way that promised the reference's tokens gave others
_FRAMES_HZ = 5.0  # of what --calibrate learns from, as the robot will send them
_CONNECT_S = 5.0  # to a server that should be up
_HERE_ONLY = ("checkpoint", "calibrate")
_THERE_ONLY = ("rest", "websocket", "websocket_split_engine", "tls_ca", "tls_cert", "tls_key")
_OWN_MODEL = "a small model with openvla-7b's bytes"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="more of everything (quick: below three minutes here)")
    parser.add_argument(
        "--sections", metavar="NAME,...", help=f"any of {','.join(ALL)} (all; with --server {','.join(THERE)})"
    )
    parser.add_argument(
        "--soak", type=float, metavar="MINUTES", help=f"four robots for so long (0; with --full {FULL.soak_minutes:g})"
    )
    parser.add_argument(
        "--deadline-ms", type=float, default=QUICK.deadline_s * 1e3, metavar="MS", help="of many robots' calls (1000)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="tables, pictures and numbers (runs/bench-<time>)")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="results.json of an earlier run; 1 when slower")
    parser.add_argument(
        "--what-if", metavar="NAME=MS,...", help="your machines: robot-encode=,server-encode=,backbone="
    )
    parser.add_argument("--frames", type=Path, default=CLIP, help="a folder of images or a video (the shipped clip)")
    parser.add_argument("--instruction", default=INSTRUCTION)
    parser.add_argument("--traces", type=Path, default=TRACES, metavar="DIR", help="link traces (the shipped ones)")
    parser.add_argument("--unnorm-key", metavar="KEY")
    parser.add_argument(
        "--threads", type=int, help="of each side's arithmetic (1; with --server what `run` takes: all cores)"
    )
    here = parser.add_argument_group("here: this machine plays the robot and every server")
    here.add_argument("--checkpoint", type=Path, metavar="DIR", help="an OpenVLA checkpoint (a small one made for it)")
    here.add_argument(
        "--calibrate", type=Path, nargs="+", metavar="PATH", help="frames for a codec of the checkpoint (none)"
    )
    here.add_argument("--precision", default="fp32", help="of the backbones; but PyTorch's knows no int8 or nf4 (fp32)")
    there = parser.add_argument_group("there: this robot against that server")
    there.add_argument("--server", metavar="HOST:PORT")
    there.add_argument("--bundle", type=Path, metavar="DIR", help="the edge half")
    there.add_argument("--encoder", default="fp32", metavar="NAME")
    there.add_argument("--provider", default="auto", metavar="NAME")
    there.add_argument("--rest", metavar="HOST:PORT", help="of `python -m benchmarks.end_to_end.serve rest`")
    there.add_argument("--websocket", metavar="HOST:PORT", help="of `... serve websocket`")
    there.add_argument("--websocket-split-engine", metavar="HOST:PORT", help="of `... serve websocket --engine split`")
    for name, what in (("ca", "the authority"), ("cert", "the robot's certificate"), ("key", "its private key")):
        there.add_argument(f"--tls-{name}", metavar="PEM", help=what)
    parser.set_defaults(command=_bench)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    parser.set_defaults(argv=given)
    return run_command(parser, given)


def _bench(arguments: argparse.Namespace) -> int:
    old = results.read_run(arguments.compare) if arguments.compare else None  # before minutes are spent
    request = _request(arguments)
    source = open_source(arguments.frames, "--frames")
    command = shlex.join(["python", "-m", "benchmarks.latency", *arguments.argv])
    with Watch() as watch, open_site(arguments, watch) as site:
        yardstick_ms = compare.yardstick_ms()
        run = Run(request, source, site, watch)
        try:
            run.run()
        except (ProcessLost, SplitVLAError, KeyboardInterrupt) as error:
            if run.sections:  # what was measured before a server went away or somebody had enough is kept
                _write(run.sections, request.out, command, yardstick_ms)
            if isinstance(error, ProcessLost):
                raise Unreachable(str(error)) from error
            raise
        after_ms = compare.yardstick_ms()
    if max(yardstick_ms, after_ms) > _UNSTEADY * min(yardstick_ms, after_ms):
        print(
            f"{_PROG}: the machine's speed changed from {yardstick_ms:.1f} to {after_ms:.1f} ms a yardstick while it "
            "was measured; leave it alone and measure again",
            file=sys.stderr,
        )
    recorded = _write(run.sections, request.out, command, (yardstick_ms + after_ms) / 2)
    promised = [measured for measured in (run.measured, run.of_policy) if measured and site.promises]
    worse = _compare(old, recorded)
    for measured in promised:
        if wrong := alternatives.differing(measured):
            print(f"{_PROG}: NOT THE SAME TOKENS as {measured[0].name}: {', '.join(wrong)}", file=sys.stderr)
            worse = True
    return _WORSE if worse else 0


def _request(arguments: argparse.Namespace) -> Request:
    usual = ",".join(ALL if arguments.server is None else THERE)
    sections = tuple(name.strip() for name in (arguments.sections or usual).split(",") if name.strip())
    if not sections:
        raise ConfigError(f"--sections {arguments.sections!r} names none; any of {','.join(ALL)}")
    if unknown := set(sections) - set(ALL):
        raise ConfigError(f"--sections {','.join(sorted(unknown))}: unknown; any of {','.join(ALL)}")
    if "policy" in sections and arguments.server is not None:
        raise ConfigError("--sections policy measures a policy of this machine's own; leave it out with --server")
    plan = FULL if arguments.full else QUICK
    if arguments.soak is not None:
        if arguments.soak and not _SHORTEST_SOAK <= arguments.soak <= 24 * 60:
            raise ConfigError(f"--soak is {arguments.soak:g} minutes; expected 0 or {_SHORTEST_SOAK:g}..1440")
        plan = dataclasses.replace(plan, soak_minutes=arguments.soak)
    if not 10 <= arguments.deadline_ms <= 60_000:
        raise ConfigError(f"--deadline-ms is {arguments.deadline_ms:g}; expected 10..60000")
    plan = dataclasses.replace(plan, deadline_s=arguments.deadline_ms / 1e3)
    if arguments.threads is not None and not 1 <= arguments.threads <= 1024:
        raise ConfigError(f"--threads is {arguments.threads}; expected 1..1024")
    return Request(
        plan=plan,
        out=_made(arguments.out or Path("runs") / time.strftime("bench-%Y%m%d-%H%M%S")),
        model=arguments.server or (arguments.checkpoint.name if arguments.checkpoint else _OWN_MODEL),
        sections=sections,
        instruction=arguments.instruction,
        traces=read_traces(arguments.traces),
        what_if=parse_what_if(arguments.what_if) if arguments.what_if else None,
    )


def _made(out: Path) -> Path:
    """The folder for the results, made before minutes are spent on them. Raises ConfigError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} can't be made: {error.strerror}; name a folder that can be written") from error
    return out


@contextlib.contextmanager
def open_site(arguments: argparse.Namespace, watch: Watch) -> Iterator[Site]:
    """Somebody's robot and server, or servers that are started here. Raises ConfigError, BundleError, LinkError ..."""
    if (arguments.server is None) != (arguments.bundle is None):
        raise ConfigError("--server and --bundle belong together: the server, and the edge half of the model it serves")
    _check_options(arguments)
    if arguments.server is not None:
        for address in (arguments.server, arguments.rest, arguments.websocket, arguments.websocket_split_engine):
            if address is not None:
                check_address(address)
        security = Security.from_files(arguments.tls_ca, arguments.tls_cert, arguments.tls_key)
        open_bundle(arguments.bundle, "edge")
        with (
            watch.phase(f"connect to {arguments.server}", _CONNECT_S),
            GrpcLink(arguments.server, security=security) as link,
        ):
            link.describe(_CONNECT_S)  # before a model is loaded for a server that is not there
        yield Site(
            edge_bundle=arguments.bundle,
            server=arguments.server,
            unnorm_key=arguments.unnorm_key,
            threads=arguments.threads,
            encoder=arguments.encoder,
            provider=arguments.provider,
            security=security,
            baselines=Baselines(arguments.rest, arguments.websocket, arguments.websocket_split_engine),
        )
        return
    from splitvla_cloud.precision import parse_precision
    from splitvla_cloud.split import split

    parse_precision(arguments.precision)  # before minutes are spent
    threads = arguments.threads or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with watch.phase("split a checkpoint", 20):
            checkpoint = arguments.checkpoint or _own_checkpoint(folder / "checkpoint")
            split(checkpoint, folder / "bundles")
        if arguments.calibrate:
            with watch.phase("calibrate", 60):
                calibrate_halves(folder / "bundles", arguments.calibrate, threads, _FRAMES_HZ)
        key = arguments.unnorm_key or (None if arguments.checkpoint else "widowx_tiny")
        with contextlib.ExitStack() as stack:
            with watch.phase("start four servers", 20):
                site = stack.enter_context(
                    start_here(
                        checkpoint,
                        folder / "bundles",
                        unnorm_key=key,
                        threads=threads,
                        precision=arguments.precision,
                        whole=True,
                    )
                )
            yield site


def _check_options(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for an option that would change nothing, and for frames that are not there."""
    there = arguments.server is not None
    given = [option for option in (_HERE_ONLY if there else _THERE_ONLY) if getattr(arguments, option) is not None]
    if given:
        names, where = " and ".join("--" + name.replace("_", "-") for name in given), "with" if there else "without"
        raise ConfigError(f"{names}: of no use {where} --server; leave out one or the other")
    missing = [path for path in arguments.calibrate or () if not path.exists()]
    if missing:
        raise ConfigError(f"--calibrate {missing[0]}: no such file or folder")


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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: else the servers would be left running
    sys.exit(main())
