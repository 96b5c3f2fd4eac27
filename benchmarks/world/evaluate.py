"""Success of a training run's policy, unsplit, in lockstep, on seeds that were never trained on.

    python -m benchmarks.world.evaluate RUN [--episodes 50] [--tasks reach-red,push] [--checks]

Two checks that it sees and reads come with it: with a black picture, and reaching with another ball's colour said.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch

from benchmarks.report import table, wilson
from benchmarks.world.actor import Act, Actor
from benchmarks.world.generate import FIRST_TEST_SEED
from benchmarks.world.rollout import Job, black, run
from benchmarks.world.shards import TASK_NAMES
from splitvla_edge.robots.metaworld.tasks import BALLS, TASKS
from splitvla_edge.robots.metaworld.world import World

_AT_ONCE = 8


def wrong_colour_jobs(episodes: int) -> list[Job]:
    """Each ball's task with the words of the next one."""
    colours = list(BALLS)
    return [
        Job(f"reach-{colour}", FIRST_TEST_SEED + n, TASKS[f"reach-{colours[(index + 1) % 3]}"].instruction)
        for index, colour in enumerate(colours)
        for n in range(episodes)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.world.evaluate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("--episodes", type=int, default=50, help="of every task")
    parser.add_argument("--tasks", default=",".join(TASK_NAMES))
    parser.add_argument("--checks", action="store_true", help="also the black picture and the wrong colour")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    actor, worlds = Actor.load(arguments.run), [World() for _ in range(_AT_ONCE)]
    tasks, n = arguments.tasks.split(","), arguments.episodes
    jobs = [Job(task, FIRST_TEST_SEED + number) for number in range(n) for task in tasks]
    runs: list[tuple[str, Act, list[Job]]] = [("as trained", actor, jobs)]
    if arguments.checks:
        runs += [("black picture", black(actor), jobs), ("wrong colour said", actor, wrong_colour_jobs(n))]
    for name, act, todo in runs:
        total, done, steps = Counter[str](), Counter[str](), Counter[str]()
        for episode in run(act, todo, worlds):
            task = episode.job.task
            total[task] += 1
            done[task] += episode.world.success
            steps[task] += episode.world.steps if episode.world.success else 0
        rows = []
        for task in total:
            low, high = wilson(done[task], total[task])
            length = f"{steps[task] / done[task]:.0f}" if done[task] else "-"
            interval = f"{100 * low:.0f}-{100 * high:.0f} %"
            rows.append(
                [task, f"{done[task]}/{total[task]}", f"{100 * done[task] / total[task]:.0f} %", interval, length]
            )
        mean = sum(done[task] / total[task] for task in total) / len(total)
        rows.append(["mean", "", f"{100 * mean:.0f} %", "", ""])
        print(f"{name}\n\n" + table(["task", "done", "success", "95 % (Wilson)", "steps"], rows), flush=True)
    for world in worlds:
        world.close()


if __name__ == "__main__":
    main()
