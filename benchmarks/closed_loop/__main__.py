"""Tasks done against delay, on links with a trace and in every precision, with the fallback ladder and without it.

    python -m benchmarks.closed_loop --out runs/closed-loop

The world goes on while the model thinks. Every condition is one of benchmarks.success's, `--clock real`. A sweep that
was interrupted goes on where it was when it is given the same --out.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.closed_loop.evaluation import REAL, Evaluation
from benchmarks.closed_loop.sweep import CONTROL_HZ, Condition, Outcome, conditions, sweep
from benchmarks.closed_loop.sweep_report import HEADER, draw, rows, text
from benchmarks.end_to_end.plan import Watch
from benchmarks.end_to_end.results import Section, write_section
from benchmarks.link.synthetic import PROCESSES
from benchmarks.processes import ProcessLost
from benchmarks.success import FIRST_SEED
from splitvla_shared.command_line import run_command
from splitvla_shared.errors import ConfigError, Unreachable

_TASKS = ("drawer-open", "faucet-left")
_KINDS = ("delay", "trace", "precision")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.closed_loop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=list(_KINDS), help="of conditions (all)")
    parser.add_argument(
        "--traces",
        nargs="+",
        default=list(PROCESSES),
        metavar="TRACE",
        help="names or files, of the uplink (shipped)",
    )
    parser.add_argument("--tasks", nargs="+", default=list(_TASKS), metavar="TASK", help=f"({' '.join(_TASKS)})")
    parser.add_argument("--episodes", type=int, default=3, metavar="N", help="of each task (3)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help=f"of the first episode ({FIRST_SEED})")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="control ticks of an episode (100)")
    parser.add_argument("--control-hz", type=float, default=CONTROL_HZ, metavar="HZ", help=f"({CONTROL_HZ:g})")
    parser.add_argument("--checkpoint", type=Path, help="the policy (the trained one under benchmarks/world)")
    parser.add_argument("--scheme", default="bf16", help="of the payload (bf16)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(runs/closed-loop-<time>)")
    parser.set_defaults(command=_run, argv=list(sys.argv[1:] if argv is None else argv))
    return run_command(parser, argv)


def _run(arguments: argparse.Namespace) -> int:
    base = Evaluation(
        tasks=tuple(arguments.tasks),
        episodes=arguments.episodes,
        seed=arguments.seed,
        steps=arguments.steps,
        checkpoint=arguments.checkpoint,
        scheme=arguments.scheme,
        clock=REAL,
        control_hz=arguments.control_hz,
    )
    base.check()
    out = arguments.out or Path("runs") / time.strftime("closed-loop-%Y%m%d-%H%M%S")
    chosen = [each for each in conditions(base, arguments.traces) if each.kind in arguments.kinds]
    outcomes = _swept(chosen, out)
    section = _section(outcomes, base)
    command = shlex.join(["python", "-m", "benchmarks.closed_loop", *arguments.argv])
    write_section(section, out, command, base.seed)
    draw(outcomes, out / "closed-loop.png")
    print(section.markdown(command, base.seed))
    print(f"table, numbers and picture: {out}")
    return 0


def _swept(chosen: Sequence[Condition], out: Path) -> list[Outcome]:
    left = [each for each in chosen if not (out / each.file).exists()]
    with Watch() as watch:
        expected_s = sum(each.expected_s for each in left)
        watch.expect(expected_s)
        with watch.phase(f"{len(left)} conditions", expected_s) as step:
            spent = 0.0

            def done(condition: Condition) -> None:
                nonlocal spent
                spent += condition.expected_s if condition in left else 0.0
                step(spent / expected_s if expected_s else 1.0)

            try:
                return sweep(chosen, out, lambda text: None, done)
            except ProcessLost as error:
                raise Unreachable(str(error)) from error


def _section(outcomes: Sequence[Outcome], base: Evaluation) -> Section:
    if not outcomes:
        raise ConfigError("no condition was chosen")
    return Section(
        name="closed-loop",
        title="Tasks done while the world goes on, by delay, link and precision",
        header=HEADER,
        rows=tuple(rows(outcomes)),
        n=len(base.tasks) * base.episodes,
        text=text(outcomes),
        packages=("metaworld", "mujoco", "onnxruntime", "torch"),
    )


if __name__ == "__main__":
    sys.exit(main())
