"""How good a draft the previous action is: per action dimension, how often its id is right or one bin off.

    python -m benchmarks.drafts --episodes 5 --save tokens.jsonl      the trained policy, in lockstep, in the simulator
    python -m benchmarks.drafts --log tokens.jsonl                    a log of any policy

A log is JSON lines, one an answer, in order: {"episode": NAME, "tokens": [ID, ...]}. The engine's own bookkeeping
(splitvla_cloud.engine.answer) counts what a draft would have kept, and in how many forward passes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import heading, table
from benchmarks.success import FIRST_SEED
from splitvla_cloud.engine.answer import Answer
from splitvla_shared.errors import ConfigError, SplitVLAError

_OPENVLA_DIMS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


@dataclass(frozen=True, slots=True)
class Logged:
    """One answer of an episode."""

    episode: str
    tokens: tuple[int, ...]

    def to_json(self) -> str:
        return json.dumps({"episode": self.episode, "tokens": self.tokens})


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Over all pairs of an answer and the one before it in its episode.

    right, near: int (dims,), ids that were equal, and one bin off. kept: int (dims + 1,), pairs by how many ids were
    kept; passes: the same by forward passes, from 0.
    """

    pairs: int
    right: NDArray[np.int64]
    near: NDArray[np.int64]
    kept: NDArray[np.int64]
    passes: NDArray[np.int64]


def read_log(path: Path) -> list[Logged]:
    """Raises ConfigError when the file can't be read, and names the first line that is no answer."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}; record one with --save") from error
    return [_parse(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]


def accept(log: Iterable[Logged]) -> Acceptance:
    """Raises ConfigError when no episode has two answers, or answers differ in length."""
    pairs = [(old.tokens, new.tokens) for old, new in pairwise(log) if old.episode == new.episode]
    if not pairs:
        raise ConfigError("no episode of the log has two answers; record longer ones")
    dims = len(pairs[0][0])
    if odd := next((pair for pair in pairs if {len(pair[0]), len(pair[1])} != {dims}), None):
        raise ConfigError(f"the log holds answers of {dims} and of {len(odd[0])} and {len(odd[1])} ids; log one robot")
    distance = np.abs(np.array([new for _, new in pairs]) - np.array([old for old, _ in pairs]))
    kept, passes = np.zeros(dims + 1, np.int64), np.zeros(dims + 1, np.int64)
    for draft, said in pairs:
        answer, count = Answer(dims, draft, frozenset()), 0
        while not answer.done:
            # Behind a wrong guess the model would say something else, which `take` does not look at.
            answer.take(said[len(answer.ids) :], [True] * dims)
            count += 1
        kept[answer.accepted] += 1
        passes[count] += 1
    return Acceptance(len(pairs), (distance == 0).sum(0), (distance == 1).sum(0), kept, passes)


def report(found: Acceptance, command: str, seed: int) -> str:
    """Heading and two tables."""
    dims = len(found.right)
    names = _OPENVLA_DIMS if dims == len(_OPENVLA_DIMS) else tuple(str(number + 1) for number in range(dims))
    head = heading("The previous action as draft", command, packages=("numpy",), seed=seed, n=found.pairs)
    far = found.pairs - found.right - found.near
    rows = [
        [name, *(_share(int(part[index]), found.pairs) for part in (found.right, found.near, far))]
        for index, name in enumerate(names)
    ]
    counts = range(dims + 1)
    histogram = [
        ["ids kept", *(_share(int(count), found.pairs) for count in found.kept)],
        ["passes", *(_share(int(count), found.pairs) for count in found.passes)],
    ]
    mean_kept, mean_passes = (float(np.average(counts, weights=part)) for part in (found.kept, found.passes))
    return (
        f"{head}\n{table(('dimension', 'right', 'one bin off', 'further'), rows)}\n"
        f"{table(('share of answers', *map(str, counts)), histogram)}\n"
        f"On the average {mean_kept:.2f} of {dims} ids are kept, and an answer takes {mean_passes:.2f} passes.\n"
    )


def record(checkpoint: Path | None, episodes: int, steps: int, seed: int) -> list[Logged]:
    """Every answer of the unsplit policy, which are those of the split one, task by task.

    Raises ConfigError without a trained checkpoint or a simulator.
    """
    from benchmarks.closed_loop.actors import UnsplitActor
    from benchmarks.closed_loop.rollout import roll_out
    from benchmarks.closed_loop.trained import trained
    from splitvla_edge.robots.metaworld.adapter import check_machine, open_world
    from splitvla_edge.robots.metaworld.tasks import TASKS, find_task

    check_machine()
    actor, world, log = UnsplitActor(checkpoint or trained()), open_world(), list[Logged]()
    try:
        for task in TASKS:
            for number in range(episodes):
                rollout = roll_out(world, task, seed + number, actor, find_task(task).instruction, steps)
                log += [Logged(f"{task} {seed + number}", step.tokens) for step in rollout.steps]
                print(f"\r{task} {number + 1}/{episodes}: {len(log)} answers    ", end="", file=sys.stderr, flush=True)
    finally:
        world.close()
    print(file=sys.stderr)
    return log


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drafts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="read this instead of acting")
    parser.add_argument("--checkpoint", type=Path, help="the policy (the trained one under benchmarks/world)")
    parser.add_argument("--episodes", type=int, default=5, metavar="N", help="of each task (5)")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="that an episode may take (60)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help=f"of the first episode ({FIRST_SEED})")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the log of what was done")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.episodes < 1 or arguments.steps < 1:
            raise ConfigError(f"--episodes {arguments.episodes} and --steps {arguments.steps} must be at least 1")
        if arguments.log:
            log = read_log(arguments.log)
        else:
            log = record(arguments.checkpoint, arguments.episodes, arguments.steps, arguments.seed)
        if arguments.save:
            _write_log(log, arguments.save)
        print(report(accept(log), shlex.join(["python", "-m", "benchmarks.drafts", *argv]), arguments.seed))
    except SplitVLAError as error:
        print(f"drafts: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _write_log(log: Iterable[Logged], path: Path) -> None:
    try:
        path.write_text("".join(logged.to_json() + "\n" for logged in log), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}; choose another place") from error


def _parse(line: str, where: str) -> Logged:
    try:
        data = json.loads(line)
        return Logged(str(data["episode"]), tuple(int(token) for token in data["tokens"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'{where} is no {{"episode": NAME, "tokens": [ID, ...]}}: {error!r}') from error


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.0f} %"


if __name__ == "__main__":
    sys.exit(main())
