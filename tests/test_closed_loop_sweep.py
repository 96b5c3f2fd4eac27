"""The plain client on a clock of its own, and the sweep: conditions, going on after an interruption, table, picture."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from benchmarks.closed_loop import sweep
from benchmarks.closed_loop.__main__ import main
from benchmarks.closed_loop.evaluation import PLAIN, REAL, Evaluation
from benchmarks.closed_loop.plain import PlainClient, Played
from benchmarks.closed_loop.results import Result, TaskResult
from benchmarks.closed_loop.sweep import BARE, LADDER, PATIENT, Condition, Outcome, conditions
from benchmarks.closed_loop.sweep_report import draw, rows, text
from splitvla_edge.robots.action_space import ActionSpace, Kind
from splitvla_shared.errors import ConfigError, Unreachable
from splitvla_shared.nouns import ActionChunk, Observation
from tests.sim_fakes import FakeWorld

BASE = Evaluation(tasks=("push",), episodes=2, seed=1_000_000, steps=20, clock=REAL, control_hz=10.0)
SPACE = ActionSpace(Kind.DELTA_EE, (-1.0, 0.0), (1.0, 1.0), gripper=1, gripper_start=1.0)


class SlowActor:
    """Answers with the number of its call after `took_s` of its own clock; the calls named in `lost` fail."""

    def __init__(self, took_s: float, lost: Sequence[int] = (), chunk: int = 1) -> None:
        self.now, self.calls = 0.0, 0
        self.saw: list[int] = []
        self._took_s, self._lost, self._chunk = took_s, lost, chunk

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def act(self, observation: Observation) -> ActionChunk:
        self.calls += 1
        self.now += self._took_s
        if self.calls in self._lost:
            raise Unreachable("gone for a moment")
        self.saw.append(int(observation.images[0].max()))
        return ActionChunk(observation.step, np.array([[0.5, 0.0]] * self._chunk), "slow")


def played(actor: SlowActor, world: FakeWorld, limit: int = 20) -> Played:
    client = PlainClient(world, actor, SPACE, period_s=0.1, limit=limit, clock=actor.clock, pause=actor.pause)
    return client.play("lift", 7, "lift it", number=3)


def test_an_answer_within_a_period_is_executed_on_the_next_tick() -> None:
    world, actor = FakeWorld(done_after=4), SlowActor(0.06)
    found = played(actor, world)
    assert (found.episode.outcome.name, found.episode.steps, found.episode.motions) == ("SUCCESS", 4, 4)
    assert found.oldest_s == pytest.approx(0.1)
    assert actor.now == pytest.approx(0.4), "paced by the clock"


def test_while_the_plain_client_waits_the_world_goes_on_and_the_arm_stands_with_its_gripper_as_it_was() -> None:
    world, actor = FakeWorld(done_after=7), SlowActor(0.25)
    found = played(actor, world)
    move, still = (0.5, 0.0), (0.0, 0.0)
    assert world.actions == [move, still, still, move, still, still, move]
    assert actor.saw == [0, 1, 4], "the world begins with the first action, and each call is on what is seen then"
    assert (found.episode.steps, found.episode.motions) == (7, 3)
    assert found.oldest_s == pytest.approx(0.3)


def test_an_episode_that_runs_out_of_time_while_it_waits_is_not_done() -> None:
    world = FakeWorld()
    found = played(SlowActor(0.95), world, limit=15)
    assert (found.episode.outcome.name, found.episode.steps) == ("TIMEOUT", 15)
    assert len(world.actions) == 15


def test_a_lost_call_is_made_again_and_its_time_passes() -> None:
    world, actor = FakeWorld(done_after=5), SlowActor(0.05, lost=(2,))
    assert played(actor, world).episode.outcome.name == "SUCCESS"
    assert world.actions.count((0.0, 0.0)) == 1


def test_a_server_that_never_answers_ends_the_episode() -> None:
    found = played(SlowActor(0.2, lost=range(1, 1000)), FakeWorld())
    assert (found.episode.outcome.name, found.episode.steps) == ("TIMEOUT", 0)


def test_the_plain_client_executes_a_chunk_to_its_end() -> None:
    world, actor = FakeWorld(done_after=4), SlowActor(0.05, chunk=3)
    found = played(actor, world)
    assert actor.calls == 2
    assert found.oldest_s == pytest.approx(0.3)


def test_the_plain_client_needs_the_real_clock_and_has_no_settings() -> None:
    for changes in ({"clock": "lockstep"}, {"sets": ("a=1",)}):
        with pytest.raises(ConfigError, match=r"--client|--set"):
            dataclasses.replace(BASE, client=PLAIN, **changes).check()


def test_every_delay_trace_and_precision_is_tried_with_the_ladder_and_without_it() -> None:
    found = conditions(BASE)
    pairs = {(each.kind, each.value) for each in found}
    for kind, value in pairs:
        clients = {each.client for each in found if (each.kind, each.value) == (kind, value)}
        assert {LADDER, BARE} <= clients
    assert {kind for kind, _ in pairs} == {"delay", "trace", "precision"}
    assert len({each.file for each in found}) == len(found)


def outcome(client: str, done: int, delay_ms: float = 0.0, oldest_s: float = 0.0) -> Outcome:
    [condition] = [each for each in conditions(BASE) if each.value == f"{delay_ms:g} ms" and each.client == client]
    result = TaskResult("push", 4, done, (9,) * done, ticks=40, motions=10 * done, oldest_s=oldest_s)
    return Outcome(condition, (result, result))


def test_a_condition_is_a_row_with_its_interval_and_the_oldest_picture_that_was_acted_on() -> None:
    assert rows([outcome(BARE, 3, 400.0, oldest_s=0.5), outcome(LADDER, 0, 400.0)]) == [
        ("delay 400 ms", "plain", "6/8", "75%", "41% to 93%", "9", "75%", "500"),
        ("delay 400 ms", "ladder", "0/8", "0%", "0% to 32%", "-", "0%", "-"),
    ]


def test_the_sweep_is_drawn_and_says_under_which_terms(tmp_path: Path) -> None:
    outcomes = [outcome(client, done, delay) for delay in (0.0, 400.0) for client, done in ((LADDER, 4), (BARE, 2))]
    draw([*outcomes, outcome(PATIENT, 4, 400.0)], tmp_path / "sweep.png")
    with PillowImage.open(tmp_path / "sweep.png") as picture:
        assert picture.width > 800
    assert "10 control ticks a second" in text(outcomes)
    assert "an episode may take 2 s" in text(outcomes)


def test_a_sweep_goes_on_where_it_was_and_starts_one_server_a_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [each for each in conditions(BASE) if each.kind == "precision"]
    kept, *left = chosen
    Result(kept.name, "earlier", (TaskResult("push", 2, 1, (5,)),)).save(tmp_path / kept.file)
    ran: list[str] = []
    started: list[str] = []
    monkeypatch.setattr(sweep, "halves", _Opened(lambda *_: tmp_path))

    def serve(how: Evaluation, bundles: Path) -> str:
        started.append(how.precision)
        return how.precision

    def against(address: str, evaluation: Evaluation, bundles: Path, tell: object) -> object:
        assert address == evaluation.precision
        ran.append(evaluation.condition)
        return _Found([TaskResult("push", 2, 2, (4, 4))])

    monkeypatch.setattr(sweep, "serving", _Opened(serve))
    monkeypatch.setattr(sweep, "against", against)
    over: list[Condition] = []
    outcomes = sweep.sweep(chosen, tmp_path, lambda said: None, over.append)
    assert (len(ran), len(started)) == (len(left), len({each.value for each in chosen}))
    assert over == chosen
    assert [each.successes for each in outcomes] == [1, *(2 for _ in left)]


@dataclasses.dataclass
class _Found:
    tasks: list[TaskResult]


class _Opened:
    """A function whose result is entered as a context."""

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *arguments: object) -> contextlib.nullcontext[object]:
        return contextlib.nullcontext(self._make(*arguments))


def test_a_mistake_is_answered_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tasks", "juggle"]) == 2
    assert "error: metaworld task 'juggle' is unknown" in capsys.readouterr().err
