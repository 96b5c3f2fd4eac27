"""How often the trained policy gets its tasks done: one Markdown table and one plot.

    python -m benchmarks.success --unsplit                       the reference model, in lockstep
    python -m benchmarks.success --scheme f32 --same-tokens      the product in lockstep, held against the reference
    python -m benchmarks.success --clock real --delay-ms 400     the daemon, over a slow link, in a world that goes on
    python -m benchmarks.success --plot a.json b.json            results of earlier runs in one picture

Seeds begin where training never comes. Whatever is not --unsplit goes through the whole product: a server process,
gRPC, codec, and EdgePolicy (lockstep) or the edge daemon with its processes (real).
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.closed_loop.evaluation import DAEMON, LOCKSTEP, PLAIN, REAL, Evaluation
from benchmarks.closed_loop.filmstrip import shots_of_rollout, write_film, write_strip
from benchmarks.closed_loop.results import HEADER, Result, plot
from benchmarks.closed_loop.runner import Findings, run
from benchmarks.processes import ProcessLost
from benchmarks.report import heading, table
from splitvla_edge.robots.metaworld.tasks import TASKS
from splitvla_shared.errors import SplitVLAError

FIRST_SEED = 1_000_000
_PACKAGES = ("metaworld", "mujoco", "onnxruntime", "torch", "numpy")
_TITLE = "How often the task gets done"


def build_parser() -> argparse.ArgumentParser:
    """Every option but --plot is a field of Evaluation."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.success", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    who = parser.add_argument_group("who acts")
    who.add_argument("--checkpoint", type=Path, help="the policy (the trained one under benchmarks/world)")
    who.add_argument("--bundles", type=Path, help="its two halves, already split (split anew)")
    who.add_argument("--unnorm-key", metavar="KEY", help="the statistics that scale its actions (the only one)")
    who.add_argument("--unsplit", action="store_true", help="the reference model, without the product")
    who.add_argument("--precision", default="fp32", help="of the backbone: fp32, bf16, int8, nf4 (fp32)")
    who.add_argument("--scheme", default="bf16", help="of the payload (bf16)")
    who.add_argument("--encoder", default="fp32", help="fp32, or fp16 or int8 where the bundle has them (fp32)")
    who.add_argument("--threads", type=int, default=1, metavar="N", help="of encoder and backbone (1)")
    what = parser.add_argument_group("what is done")
    what.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help=f"of {', '.join(TASKS)} (all)")
    what.add_argument("--episodes", type=int, default=50, metavar="N", help="of each task (50)")
    what.add_argument("--seed", type=int, default=FIRST_SEED, help=f"of the first episode ({FIRST_SEED})")
    what.add_argument("--steps", type=int, default=60, metavar="N", help="control steps that an episode may take (60)")
    what.add_argument("--black-image", action="store_true", help="the policy sees nothing (lockstep)")
    what.add_argument("--wrong-colour", action="store_true", help="reach tasks: told another ball than the one judged")
    how = parser.add_argument_group("in which world")
    how.add_argument("--clock", choices=(LOCKSTEP, REAL), default=LOCKSTEP, help="(lockstep)")
    how.add_argument("--client", choices=(DAEMON, PLAIN), default=DAEMON, help="of the real clock (daemon)")
    how.add_argument("--control-hz", type=float, default=5.0, metavar="HZ", help="of the real clock (5)")
    how.add_argument("--delay-ms", type=float, default=0.0, metavar="MS", help="added to every round trip (real)")
    how.add_argument("--trace", metavar="FILE", help="rate of the uplink, by name or file of benchmarks.link (real)")
    how.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for the daemon (real)")
    out = parser.add_argument_group("what comes out")
    out.add_argument("--same-tokens", action="store_true", help="hold each answer against the unsplit model (lockstep)")
    out.add_argument("--name", help="of the condition, in table and plot (made from the options)")
    out.add_argument("--out", type=Path, metavar="DIR", help="for result, plot and the first episode's pictures")
    out.add_argument("--plot", type=Path, nargs="+", metavar="JSON", help="only draw these results, into --out")
    return parser


def evaluation_of(arguments: argparse.Namespace) -> Evaluation:
    """The options as an Evaluation."""
    given = {each.name: getattr(arguments, each.name) for each in dataclasses.fields(Evaluation) if each.name != "sets"}
    return Evaluation(**given | {"tasks": tuple(arguments.tasks), "sets": tuple(arguments.set)})


def report(result: Result, findings: Findings, evaluation: Evaluation) -> str:
    """The table under its heading, and the notes below it."""
    title = f"Success: {result.condition}"
    head = heading(title, result.command, packages=_PACKAGES, seed=evaluation.seed, n=evaluation.episodes)
    notes = "".join(f"\n{note}\n" for note in findings.notes)
    return f"{head}\n{table(HEADER, result.rows())}{notes}"


def keep(result: Result, findings: Findings, out: Path) -> None:
    """Result and plot, and in lockstep the first episode as a strip and a film."""
    result.save(out / "success.json")
    plot([result], out / "success.png", _TITLE)
    if findings.first:
        shots = shots_of_rollout(findings.first)
        write_strip(shots, out / "episode.png")
        write_film(shots, out / "episode.gif")


def evaluate(evaluation: Evaluation, command: str) -> None:
    """Run it, print its table, keep its files."""
    findings = run(evaluation, lambda text: print(f"\r{text:<60}", end="", file=sys.stderr, flush=True))
    print(file=sys.stderr)
    result = Result(evaluation.condition, command, tuple(findings.tasks))
    print(report(result, findings, evaluation))
    if evaluation.out:
        keep(result, findings, evaluation.out)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.plot:
            path = (arguments.out or Path()) / "success.png"
            plot([Result.load(each) for each in arguments.plot], path, _TITLE)
            print(path)
        else:
            evaluate(evaluation_of(arguments), shlex.join(["python", "-m", "benchmarks.success", *argv]))
    except SplitVLAError as error:
        print(f"success: error: {error}", file=sys.stderr)
        return error.exit_code
    except ProcessLost as error:
        print(f"success: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
