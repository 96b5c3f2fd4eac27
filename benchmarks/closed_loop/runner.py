"""Runs an evaluation on either clock: processes up, episodes one after the other, counts."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.closed_loop.actors import Actor, Blind, Compared, SplitActor, UnsplitActor
from benchmarks.closed_loop.evaluation import LOCKSTEP, PLAIN, Evaluation
from benchmarks.closed_loop.frame_account import FrameAccount
from benchmarks.closed_loop.real_clock import Drive, Driven, linked, run_daemon, run_plain
from benchmarks.closed_loop.results import TaskResult
from benchmarks.closed_loop.rollout import Rollout, roll_out
from benchmarks.closed_loop.trained import halves, trained
from benchmarks.processes import ServerProcess
from splitvla_edge import EdgePolicy
from splitvla_edge.daemon.episodes import Outcome
from splitvla_edge.daemon.record import make_unused
from splitvla_edge.robots.metaworld.adapter import open_world

Tell = Callable[[str], None]


@dataclass(slots=True)
class Findings:
    """What an evaluation found. notes: sentences for below the table. first: its first episode, in lockstep."""

    tasks: list[TaskResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    first: Rollout | None = None


def run(evaluation: Evaluation, tell: Tell) -> Findings:
    """tell: gets a line of progress now and then. Raises SplitVLAError and ProcessLost."""
    evaluation.check()
    return in_lockstep(evaluation, tell) if evaluation.clock == LOCKSTEP else on_the_real_clock(evaluation, tell)


def in_lockstep(evaluation: Evaluation, tell: Tell) -> Findings:
    found, account = Findings(), FrameAccount()
    world = open_world()
    try:
        with _acting(evaluation) as actor:
            for task in evaluation.tasks:
                steps: list[int] = []
                for number in range(evaluation.episodes):
                    seed, said = evaluation.seed + number, evaluation.instruction(task)
                    rollout = roll_out(world, task, seed, actor, said, evaluation.steps)
                    steps += [len(rollout.steps)] if rollout.success else []
                    account.add(rollout)
                    found.first = found.first or rollout
                    tell(f"{task} {number + 1}/{evaluation.episodes}, {len(steps)} done")
                found.tasks.append(TaskResult(task, evaluation.episodes, len(steps), tuple(steps)))
    finally:
        world.close()
    if isinstance(actor, Compared):
        found.notes.append(actor.note())
    found.notes += account.notes()
    return found


def on_the_real_clock(evaluation: Evaluation, tell: Tell) -> Findings:
    with (
        halves(evaluation.checkpoint or trained(), evaluation.bundles) as bundles,
        serving(evaluation, bundles) as address,
    ):
        return against(address, evaluation, bundles, tell)


def against(address: str, evaluation: Evaluation, bundles: Path, tell: Tell) -> Findings:
    """On the real clock, with a server that runs already."""
    found, overtaken = Findings(), 0
    with (
        linked(address, evaluation.delay_ms, evaluation.trace) as server,
        tempfile.TemporaryDirectory(prefix="splitvla-runs-") as folder,
        contextlib.ExitStack() as stack,
    ):
        drive = Drive(bundles / "edge", server, evaluation)
        world = stack.enter_context(contextlib.closing(open_world())) if evaluation.client == PLAIN else None
        for task in evaluation.tasks:
            tell(f"{task}: {evaluation.episodes} episodes")
            driven = (
                run_daemon(drive, task, make_unused((evaluation.out or Path(folder)) / f"run-{task}"))
                if world is None
                else run_plain(drive, task, world)
            )
            found.tasks.append(_counted(task, driven))
            overtaken += sum(each.overtaken for each in driven.episodes)
    lost = sum(result.lost for result in found.tasks)
    found.notes.append(f"Actions overtaken by a newer command: {overtaken}. Episodes lost to a dead simulator: {lost}.")
    return found


def _counted(task: str, driven: Driven) -> TaskResult:
    episodes = driven.episodes
    steps = tuple(each.steps for each in episodes if each.outcome is Outcome.SUCCESS)
    return TaskResult(
        task,
        len(episodes),
        len(steps),
        steps,
        lost=sum(each.outcome is Outcome.LOST for each in episodes),
        ticks=sum(each.steps for each in episodes),
        motions=sum(each.motions for each in episodes),
        oldest_s=driven.oldest_s,
    )


@contextlib.contextmanager
def _acting(evaluation: Evaluation) -> Iterator[Actor]:
    """The actor that is asked for, with its server where it has one."""
    checkpoint = evaluation.checkpoint or trained()
    with contextlib.ExitStack() as stack:
        actor: Actor
        if evaluation.unsplit:
            actor = UnsplitActor(checkpoint, evaluation.precision, evaluation.unnorm_key)
        else:
            bundles = stack.enter_context(halves(checkpoint, evaluation.bundles))
            actor = SplitActor(stack.enter_context(_connected(evaluation, bundles)))
        if evaluation.black_image:
            actor = Blind(actor)
        yield (
            Compared(actor, UnsplitActor(checkpoint, unnorm_key=evaluation.unnorm_key))
            if evaluation.same_tokens
            else actor
        )


@contextlib.contextmanager
def serving(evaluation: Evaluation, bundles: Path) -> Iterator[str]:
    threads = ("--threads", str(evaluation.threads))
    with ServerProcess(bundles / "cloud", *threads, precision=evaluation.precision) as server:
        yield server.wait_ready(120.0)


@contextlib.contextmanager
def _connected(evaluation: Evaluation, bundles: Path) -> Iterator[EdgePolicy]:
    with (
        serving(evaluation, bundles) as address,
        EdgePolicy.connect(
            bundles / "edge",
            address,
            unnorm_key=evaluation.unnorm_key,
            scheme=evaluation.scheme,
            threads=evaluation.threads,
            encoder=evaluation.encoder,
        ) as policy,
    ):
        yield policy
