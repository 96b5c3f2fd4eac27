"""How often each precision of the backbone says what fp32 says, on the trained policy's own frames.

    python -m benchmarks.agreement --episodes 1

The frames are those of closed-loop episodes of the unsplit policy in the simulator. fp8 and int4 are computed by
the code that serves them on a GPU; torch has its product on a CPU too.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.closed_loop.actors import UnsplitActor
from benchmarks.closed_loop.rollout import roll_out
from benchmarks.closed_loop.trained import halves, trained
from benchmarks.report import heading, table
from benchmarks.success import FIRST_SEED
from splitvla_cloud.backbone import Backbone, linears, load_model, read_config
from splitvla_cloud.engine.fp8 import convert
from splitvla_cloud.precision import NUMERICS, Precision, check_shapes, parse_precisions
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.verify.unsplit import UnsplitEncoder, prompt_ids, square
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.errors import ConfigError, SplitVLAError
from splitvla_shared.nouns import FloatArray

_REFERENCES: tuple[Precision, ...] = ("fp32", "bf16")
_STEPS = 60  # that an episode may take


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What a backbone is given."""

    prompt: tuple[int, ...]
    patches: FloatArray


@dataclass(frozen=True, slots=True)
class Agreement:
    """same: ids equal to the reference's. near: one bin off. whole: answers of which every id is equal."""

    ids: int
    same: int
    near: int
    answers: int
    whole: int


def compare(said: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> Agreement:
    """Answers of one length each, one for each frame. Pure."""
    away = np.abs(np.array(said, dtype=np.int64) - np.array(expected, dtype=np.int64))
    same = away == 0
    return Agreement(away.size, int(same.sum()), int((away == 1).sum()), len(away), int(same.all(axis=1).sum()))


def load(bundle: Bundle, precision: Precision) -> Backbone:
    """On the CPU, also what is served on GPUs only."""
    if (kind := NUMERICS[precision].convert) is None:
        return Backbone.load(bundle, precision, "cpu")
    check_shapes(precision, "cpu", linears(read_config(bundle)))
    model, device = load_model(bundle, "bf16", "cpu")
    convert(model, kind)
    return Backbone(model, precision, device)


def record(checkpoint: Path, episodes: int, every: int, seed: int) -> list[Shown]:
    """Every n-th frame of each task's episodes. Raises ConfigError without a simulator."""
    from splitvla_edge.robots.metaworld.adapter import check_machine, open_world
    from splitvla_edge.robots.metaworld.tasks import TASKS, find_task

    check_machine()
    source = Checkpoint.open(checkpoint)
    encoder, actor = UnsplitEncoder(source, torch.float32), UnsplitActor(checkpoint)
    world, shown = open_world(), list[Shown]()
    try:
        for task in TASKS:
            instruction = find_task(task).instruction
            prompt = tuple(prompt_ids(source, instruction))
            for number in range(episodes):
                rollout = roll_out(world, task, seed + number, actor, instruction, _STEPS)
                images = (square(step.image, source.vision) for step in rollout.steps[::every])
                shown.extend(Shown(prompt, encoder.see(image).patches) for image in images)
            _tell(f"{task}: {len(shown)} frames")
    finally:
        world.close()
    return shown


def answers(backbone: Backbone, shown: Sequence[Shown], dims: int) -> list[tuple[int, ...]]:
    return [backbone.full_answer(each.prompt, each.patches, dims) for each in shown]


def report(said: Mapping[Precision, list[tuple[int, ...]]], command: str, seed: int) -> str:
    """said: each precision's answers; fp32 and bf16 are what the others are held against, where they are among them."""
    rows = []
    for precision, mine in said.items():
        row: list[str] = [precision]
        for other in _REFERENCES:
            if other in said:
                found = compare(mine, said[other])
                far = found.ids - found.same - found.near
                row += [f"{100 * count / found.ids:.1f} %" for count in (found.same, found.near, far)]
                row.append(f"{found.whole} of {found.answers}")
            else:
                row += ["-"] * 4
        rows.append(row)
    names = [f"{name} {other}" for other in _REFERENCES for name in ("ids as", "one bin off", "further from")]
    names = [*names[:3], "answers as fp32", *names[3:], "answers as bf16"]
    count = len(next(iter(said.values())))
    head = heading(
        "Precisions of the backbone on the trained policy's frames",
        command,
        packages=("torch", "transformers", "bitsandbytes"),
        seed=seed,
        n=count,
    )
    return f"{head}\n{table(('precision', *names), rows)}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.agreement", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="the policy (the trained one under benchmarks/world)")
    parser.add_argument("--precisions", default=",".join(NUMERICS), metavar="A,B", help="(all)")
    parser.add_argument("--episodes", type=int, default=1, metavar="N", help="of each task (1)")
    parser.add_argument("--every", type=int, default=3, metavar="N", help="of an episode's frames, each n-th (3)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help=f"of the first episode ({FIRST_SEED})")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.episodes < 1 or arguments.every < 1:
            raise ConfigError(f"--episodes {arguments.episodes} and --every {arguments.every} must be at least 1")
        precisions = parse_precisions(arguments.precisions)
        checkpoint = arguments.checkpoint or trained()
        shown = record(checkpoint, arguments.episodes, arguments.every, arguments.seed)
        said: dict[Precision, list[tuple[int, ...]]] = {}
        with halves(checkpoint) as folder:
            bundle = open_bundle(folder / "cloud", "cloud")
            for precision in precisions:
                said[precision] = answers(load(bundle, precision), shown, bundle.spec.max_action_dims)
                _tell(precision)
    except SplitVLAError as error:
        print(f"agreement: error: {error}", file=sys.stderr)
        return error.exit_code
    print(report(said, shlex.join(["python", "-m", "benchmarks.agreement", *argv]), arguments.seed))
    return 0


def _tell(text: str) -> None:
    print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
