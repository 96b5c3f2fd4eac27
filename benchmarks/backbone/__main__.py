"""Our backbone engine beside transformers' generate() and the roofline: one Markdown table a precision.

    python -m benchmarks.backbone --preset tiny -n 50
    python -m benchmarks.backbone --preset 7b --device cuda --precisions bf16 -n 200 --seconds 240

Weights are random and made on the device. In fp32 every answer must be that of generate(): where one differs, the table
is printed all the same, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

import torch

from benchmarks.backbone.contenders import DIMS, PROMPT_IDS
from benchmarks.backbone.figures import HEADER, differing, sentences
from benchmarks.backbone.models import PRESETS
from benchmarks.backbone.session import Plan, Session, measure_precision
from benchmarks.report import heading, table
from splitvla_cloud.precision import Precision, parse_precisions, select_device
from splitvla_shared.errors import ConfigError, SplitVLAError

_USUAL = {"cpu": "fp32", "cuda": "fp32,bf16,int8,nf4,fp8,int4"}
_LEGEND = (
    "Times are p50 / p90 / p99; answer is from admission to the last id. draft: share of its ids that are right. "
    "passes: forward passes until an answer is whole. least: what the weights' bytes and products take at the rates "
    "below (no bound where a cache of the processor holds the weights). as HF: answers equal to generate()'s."
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.backbone", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="size of the model (tiny)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument(
        "--precisions",
        metavar="A,B",
        help=f"(on CUDA {_USUAL['cuda']}; on a CPU {_USUAL['cpu']}, others may crawl there)",
    )
    parser.add_argument("--robots", default="1,2,4,8,16", metavar="A,B", help="frames at once (1,2,4,8,16)")
    parser.add_argument("-n", type=int, default=20, help="rounds (20)")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="a precision's rounds end behind it (never)"
    )
    parser.add_argument("--cases", type=int, default=4, help="different frames, taken in turn (4)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (torch's own choice)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Raises ConfigError."""
    device = select_device(arguments.device)
    names = arguments.precisions or _USUAL[torch.device(device).type]
    try:
        robots = tuple(sorted({1, *(int(text) for text in arguments.robots.split(","))}))
    except ValueError as error:
        raise ConfigError(f"--robots {arguments.robots!r}: give numbers with commas, such as 1,2,4") from error
    precisions = parse_precisions(names)
    if not precisions:
        raise ConfigError(f"--precisions {names!r} names none; give one such as fp32")
    plan = Plan(
        arguments.preset, device, precisions, robots, arguments.n, arguments.cases, arguments.seed, arguments.seconds
    )
    plan.check()
    return plan


def report(plan: Plan, precision: str, found: Session, command: str) -> str:
    """Heading, table, and what it is held against."""
    on_gpu = plan.device != "cpu"
    where = torch.cuda.get_device_name(plan.device) if on_gpu else f"the CPU, {torch.get_num_threads()} threads"
    title = heading(
        f"The backbone engine: {plan.preset} on {where}",
        command,
        packages=("torch", "transformers"),
        seed=plan.seed,
        n=plan.n,
    )
    legend = f"{PRESETS[plan.preset].patches} patches, {PROMPT_IDS} prompt ids, {DIMS} ids answered. {_LEGEND}"
    rates = (
        f"Rates, {precision}: copies at {found.roofline.copy_bytes_s / 1e9:.1f} GB/s, "
        f"products at {found.roofline.flops_s / 1e9:,.0f} GFLOP/s."
    )
    load = "" if on_gpu else f" Load average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores."
    notes = "\n".join(f"- {line}" for line in (*sentences(found.measured), rates, *found.remarks))
    return f"{title}\n{legend}{load}\n\n{table(HEADER, [each.row() for each in found.measured])}\n{notes}\n"


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser().parse_args(argv)
    if arguments.threads > 0:
        torch.set_num_threads(arguments.threads)
    command = shlex.join(["python", "-m", "benchmarks.backbone", *argv])
    try:
        plan = plan_of(arguments)
    except SplitVLAError as error:
        print(f"backbone: error: {error}", file=sys.stderr)
        return error.exit_code
    return max(_measured(plan, precision, command) for precision in plan.precisions)


def _measured(plan: Plan, precision: Precision, command: str) -> int:
    """Print a precision's table at once, because a later one may be cut off; the exit status that it asks for."""
    try:
        found = measure_precision(plan, precision, _tell)
    except SplitVLAError as error:
        print(f"\nbackbone: error: {precision}: {error}", file=sys.stderr)
        return error.exit_code
    except RuntimeError:  # of torch: the next precision may well run
        traceback.print_exc()
        return 1
    print(file=sys.stderr)
    print(report(plan, precision, found, command), flush=True)
    if wrong := differing(found.measured):
        print(f"backbone: error: {wrong} answers in fp32 differ from those of generate()", file=sys.stderr)
        return 1
    return 0


def _tell(text: str) -> None:
    print(f"\r{text:<40}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
