"""How often each precision of the backbone says what fp32 says, on the trained policy's own frames.

    python -m benchmarks.agreement --episodes 1

The frames are those of closed-loop episodes of the unsplit policy in the simulator. fp8 is computed by the kernel that
serves it, which torch has on a CPU too. int4-fp8 is not a precision that is served: 4-bit weights in groups of 128 and
8-bit activations, emulated in fp32, to say what such a kernel would cost in answers.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.closed_loop.actors import UnsplitActor
from benchmarks.closed_loop.rollout import roll_out
from benchmarks.closed_loop.trained import halves, trained
from benchmarks.report import heading, table
from benchmarks.success import FIRST_SEED
from splitvla_cloud.backbone import Backbone, load_model
from splitvla_cloud.engine.fp8 import convert_to_fp8, quantise
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.verify.unsplit import UnsplitEncoder, prompt_ids, square
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.errors import ConfigError, SplitVLAError
from splitvla_shared.nouns import FloatArray

_LOADED = ("fp32", "bf16", "int8", "nf4")
_CONVERTED = ("fp8", "int4-fp8")
_GROUP, _LARGEST = 128, 7  # of 4-bit codes: weights that share a scale, and the largest code
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


class Int4Emulation(nn.Module):
    """A linear layer as a kernel with 4-bit weights and 8-bit activations would compute it, in float32.

    Weights: symmetric codes -7..7, one scale for each _GROUP inputs of an output. Activations: as in engine.fp8.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        groups = layer.weight.detach().float().view(layer.out_features, -1, min(_GROUP, layer.in_features))
        scales = groups.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / _LARGEST
        self._weight, self.bias = ((groups / scales).round() * scales).flatten(1), layer.bias
        self.weight = layer.weight  # transformers asks layers for their dtype

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        codes, scales = quantise(rows)
        return nn.functional.linear(codes.float() * scales, self._weight, self.bias).to(rows.dtype)


def load(bundle: Bundle, precision: str) -> Backbone:
    """On the CPU. fp8 and int4-fp8 keep everything but the blocks' linear layers in bf16."""
    for known in _LOADED:
        if known == precision:
            return Backbone.load(bundle, known, "cpu")  # type: ignore[arg-type]
    model, device = load_model(bundle, "bf16", "cpu")
    if precision == "fp8":
        convert_to_fp8(model)
    else:
        _emulate_int4(model)
    return Backbone(model, "fp8", device)


def _emulate_int4(model: Any) -> None:
    with torch.no_grad():
        for block in model.model.layers:
            for owner in (block.self_attn, block.mlp):
                for name, layer in list(owner.named_children()):
                    if type(layer) is nn.Linear:
                        setattr(owner, name, Int4Emulation(layer))


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


def report(said: dict[str, list[tuple[int, ...]]], command: str, seed: int) -> str:
    """said: each precision's answers; fp32 and bf16 are what the others are held against, where they are among them."""
    rows = []
    for precision, mine in said.items():
        row = [precision]
        for other in ("fp32", "bf16"):
            if other in said:
                found = compare(mine, said[other])
                far = found.ids - found.same - found.near
                row += [f"{100 * count / found.ids:.1f} %" for count in (found.same, found.near, far)]
                row.append(f"{found.whole} of {found.answers}")
            else:
                row += ["-"] * 4
        rows.append(row)
    names = [f"{name} {other}" for other in ("fp32", "bf16") for name in ("ids as", "one bin off", "further from")]
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
    parser.add_argument("--precisions", default=",".join((*_LOADED, *_CONVERTED)), metavar="A,B", help="(all)")
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
        names = arguments.precisions.split(",")
        if unknown := set(names) - {*_LOADED, *_CONVERTED}:
            raise ConfigError(f"precisions {sorted(unknown)} are unknown; any of {', '.join((*_LOADED, *_CONVERTED))}")
        checkpoint = arguments.checkpoint or trained()
        shown = record(checkpoint, arguments.episodes, arguments.every, arguments.seed)
        said = {}
        with halves(checkpoint) as folder:
            bundle = open_bundle(folder / "cloud", "cloud")
            for precision in names:
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
