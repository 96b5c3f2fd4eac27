"""Closed-loop evaluation: intervals, the two clocks' rules, lockstep episodes, tables and pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image as PillowImage

from benchmarks.closed_loop.actors import Blind, Compared, Difference, SplitActor, UnsplitActor
from benchmarks.closed_loop.evaluation import REAL, Evaluation
from benchmarks.closed_loop.filmstrip import Shot, shots_of_rollout, shots_of_run, spread, write_film, write_strip
from benchmarks.closed_loop.frame_account import FrameAccount
from benchmarks.closed_loop.real_clock import linked
from benchmarks.closed_loop.results import Result, TaskResult, plot
from benchmarks.closed_loop.rollout import Rollout, Step, roll_out
from benchmarks.closed_loop.runner import run
from benchmarks.report import wilson
from benchmarks.success import main
from splitvla_cloud.verify.unsplit import Answer
from splitvla_edge.daemon.episodes import Episode, Outcome
from splitvla_edge.daemon.record import STEPS_FILE, StepRecord
from splitvla_edge.robots.metaworld.adapter import open_world
from splitvla_shared.errors import ConfigError, Unreachable
from splitvla_shared.nouns import ActionChunk, Observation
from tests.sim_fakes import FakeWorld, needs_world

PUSH = Evaluation(tasks=("push",), episodes=1, seed=1_000_000, steps=3)


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [(0, 50, (0.0, 0.0713)), (50, 50, (0.9287, 1.0)), (8, 10, (0.4902, 0.9433)), (41, 50, (0.6920, 0.9023))],
)
def test_the_wilson_interval_has_its_known_values(successes: int, n: int, expected: tuple[float, float]) -> None:
    assert wilson(successes, n) == pytest.approx(expected, abs=1e-4)


def test_an_interval_of_nothing_is_everything_and_more_successes_than_tries_are_refused() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


class Script:
    """Gives these chunks one after the other, the last for ever; keeps what it was shown."""

    def __init__(self, *chunks: Sequence[Sequence[float]], tokens: tuple[int, ...] = (5, 6)) -> None:
        self.chunks, self.tokens = list(chunks), tokens
        self.seen: list[Observation] = []

    def act(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        chunk = self.chunks.pop(0) if len(self.chunks) > 1 else self.chunks[0]
        return ActionChunk(observation.step, np.array(chunk, np.float64), "script", tokens=self.tokens)


def test_in_lockstep_the_world_takes_one_step_for_every_action_and_ends_with_its_success() -> None:
    world, actor = FakeWorld(done_after=3), Script([[0.1, 1.0]])
    rollout = roll_out(world, "lift", 7, actor, "lift the pot", limit=10)
    assert (rollout.success, len(rollout.steps)) == (True, 3)
    assert world.resets == [("lift", 7)]
    assert [int(each.images[0].max()) for each in actor.seen] == [0, 1, 2], "each answer to the picture of its moment"
    assert rollout.last.max() == 3
    assert {each.instruction for each in actor.seen} == {"lift the pot"}


def test_an_episode_that_is_not_done_ends_at_its_limit() -> None:
    rollout = roll_out(FakeWorld(), "lift", 0, Script([[0.1, 1.0]]), "lift", limit=4)
    assert (rollout.success, len(rollout.steps)) == (False, 4)


def test_a_chunk_is_executed_to_its_end_but_not_beyond_the_success() -> None:
    world = FakeWorld(done_after=5)
    actor = Script([[0.1, 1.0], [0.2, 1.0], [0.3, 1.0]], [[0.4, 1.0], [0.5, 1.0], [0.6, 1.0]])
    rollout = roll_out(world, "lift", 0, actor, "lift", limit=10)
    assert [action[0] for action in world.actions] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert [int(step.image.max()) for step in rollout.steps] == [0, 1, 2, 3, 4]
    assert len(actor.seen) == 2


@needs_world
def test_lockstep_gives_the_same_episode_twice() -> None:
    world = open_world()
    chunks = [[[0.02, 0.03, -0.01, 0.0, 0.0, 0.0, 0.4]]]
    first, again = (roll_out(world, "faucet-left", 1_000_003, Script(*chunks), "turn", limit=8) for _ in range(2))
    world.close()
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first.steps, again.steps, strict=True))
    assert np.array_equal(first.last, again.last)
    assert not np.array_equal(first.steps[0].image, first.last)


@needs_world
def test_the_product_in_lockstep_says_the_same_tokens_as_the_unsplit_model(
    tiny_checkpoint: Path, tiny_bundles: Path
) -> None:
    asked = dataclasses.replace(
        PUSH,
        checkpoint=tiny_checkpoint,
        bundles=tiny_bundles,
        unnorm_key="widowx_tiny",
        scheme="f32",
        same_tokens=True,
    )
    found = run(asked, lambda text: None)
    assert "Tokens: 0 of 3 steps differ from the unsplit model's." in found.notes
    assert [(each.task, each.episodes, each.successes) for each in found.tasks] == [("push", 1, 0)]
    assert found.first is not None
    assert found.first.steps[0].source == "cloud"


class FlakyPolicy:
    """An EdgePolicy whose first calls fail."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def act(self, observation: Observation, *, deadline_s: float) -> ActionChunk:
        if self.failures:
            self.failures -= 1
            raise Unreachable("no connection")
        return ActionChunk(observation.step, np.zeros((1, 2)), "cloud")


def test_in_lockstep_an_observation_is_asked_again_when_the_connection_broke_but_not_for_ever() -> None:
    pauses: list[float] = []
    observation = Observation(4, (np.zeros((2, 2, 3), np.uint8),), "lift", 1.0)
    assert SplitActor(FlakyPolicy(3), pause=pauses.append).act(observation).first_step == 4
    assert len(pauses) == 3
    with pytest.raises(Unreachable):
        SplitActor(FlakyPolicy(99), pause=pauses.append).act(observation)


def test_an_actor_made_blind_is_shown_black_and_told_the_same() -> None:
    actor = Script([[0.0, 1.0]])
    Blind(actor).act(Observation(2, (np.full((2, 2, 3), 9, np.uint8),), "lift", 1.0))
    assert actor.seen[0].images[0].max() == 0
    assert (actor.seen[0].step, actor.seen[0].instruction) == (2, "lift")


class Sure:
    """A reference that gives these tokens, each with a margin of half of its logits' spread of 4."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def answer(self, observation: Observation) -> Answer:
        spread = np.full(len(self.tokens), 4.0)
        return Answer(self.tokens, spread / 2, spread)


def test_an_answer_that_differs_from_the_reference_is_counted_and_told_with_the_references_margin() -> None:
    one = Script([[0.0, 1.0]], tokens=(1, 2))
    same, differing = Compared(one, Sure(1, 2)), Compared(one, Sure(1, 3))
    for actor in (same, differing, differing):
        actor.act(Observation(0, (np.zeros((2, 2, 3), np.uint8),), "lift", 1.0))
    assert (same.steps, same.differences) == (1, [])
    assert differing.differences == [Difference(0, 1, 2, 3, 0.5), Difference(1, 1, 2, 3, 0.5)]
    assert differing.note().startswith("Tokens: 2 of 2 steps differ from the unsplit model's (first token")
    assert "step 1, dimension 1: 2 for 3, 5.0e-01" in differing.note()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tasks": ("juggle",)}, "juggle"),
        ({"episodes": 0}, "--episodes 0"),
        ({"delay_ms": 40.0}, "need --clock real"),
        ({"sets": ("a=1",)}, "need --clock real"),
        ({"clock": REAL, "unsplit": True}, "need --clock lockstep"),
        ({"clock": REAL, "black_image": True}, "need --clock lockstep"),
        ({"unsplit": True, "same_tokens": True}, "leave the other option out"),
        ({"black_image": True, "same_tokens": True}, "leave the other option out"),
        ({"wrong_colour": True}, "reach-red"),
    ],
)
def test_options_that_can_t_go_together_are_refused_before_anything_is_loaded(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        dataclasses.replace(PUSH, **changes).check()  # type: ignore[arg-type]


def test_the_wrong_colour_is_another_ball_s_and_never_its_own() -> None:
    reach = dataclasses.replace(PUSH, tasks=("reach-red", "reach-blue"), wrong_colour=True)
    assert [reach.instruction(task) for task in reach.tasks] == ["reach the green ball", "reach the red ball"]
    assert dataclasses.replace(reach, wrong_colour=False).instruction("reach-red") == "reach the red ball"


def test_a_condition_is_named_by_what_differs_from_the_ordinary() -> None:
    assert PUSH.condition == "split, bf16, fp32, lockstep"
    slow = dataclasses.replace(PUSH, clock=REAL, delay_ms=400.0, trace="traces/lte-good.list", encoder="int8")
    assert slow.condition == "split, bf16, fp32, encoder int8, 5 Hz, +400 ms, lte-good"
    assert dataclasses.replace(slow, name="slow").condition == "slow"


def test_the_command_line_answers_a_mistake_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tasks", "juggle"]) == 2
    assert capsys.readouterr().err.startswith("success: error: metaworld task 'juggle' is unknown; one of ")
    assert main(["--plot", "absent.json"]) == 2
    assert "holds no result" in capsys.readouterr().err


def test_a_trace_that_there_is_not_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"absent\.csv.*lte-driving"), linked("127.0.0.1:1", 0.0, "absent.csv"):
        pass


def test_a_link_without_delay_or_trace_is_the_server_itself() -> None:
    with linked("127.0.0.1:1", 0.0, None) as address:
        assert address == "127.0.0.1:1"


@pytest.mark.parametrize(("precision", "key"), [("int8", "widowx_tiny"), ("fp32", None)])
def test_the_reference_names_what_it_can_t_do(tiny_checkpoint: Path, precision: str, key: str | None) -> None:
    with pytest.raises(ConfigError, match=r"precision 'int8'|unnorm key None"):
        UnsplitActor(tiny_checkpoint, precision, key)


RESULT = Result("split", "make it", (TaskResult("push", 10, 8, (9, 7, 8)), TaskResult("button", 10, 0, (), lost=1)))


def test_a_result_is_a_row_a_task_and_one_for_all() -> None:
    assert RESULT.rows() == [
        ["push", "8/10", "80%", "49% to 94%", "8"],
        ["button", "0/10", "0%", "0% to 28%", "-"],
        ["**all**", "8/20", "40%", "22% to 61%", "8"],
    ]
    assert RESULT.mean == pytest.approx(0.4)


def test_a_result_comes_back_from_its_file_and_is_drawn(tmp_path: Path) -> None:
    RESULT.save(tmp_path / "a" / "success.json")
    assert Result.load(tmp_path / "a" / "success.json") == RESULT
    plot([RESULT, dataclasses.replace(RESULT, condition="other")], tmp_path / "plot.png", "How often")
    with PillowImage.open(tmp_path / "plot.png") as picture:
        assert picture.width > 400
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no result"):
        Result.load(tmp_path / "none.json")


GREY = np.full((8, 8, 3), 90, np.uint8)


def step(*tokens: int) -> Step:
    return Step(GREY, np.zeros(2), tokens, "cloud")


def test_repeated_tokens_are_counted_by_dimension_within_an_episode() -> None:
    account = FrameAccount()
    account.add(Rollout("push", 0, True, (step(1, 2), step(1, 3), step(1, 3)), GREY))
    account.add(Rollout("push", 1, True, (step(9, 9),), GREY))
    repeats, jpeg = account.notes()
    assert repeats.startswith("Share of 2 pairs of successive steps with the same token, by dimension: 1.00, 0.50")
    assert jpeg.startswith("JPEG of a frame at quality 90 (4:2:0): p50 ")
    assert FrameAccount().notes() == []


def test_a_frames_jpeg_is_counted_at_the_subsampling_of_every_other_jpeg_here() -> None:
    """At 4:4:4 a picture would seem to cost more than the pictures that the split is held against."""
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = [len(simplejpeg.encode_jpeg(colours, quality=90, colorsubsampling=each)) for each in ("420", "444")]
    assert sizes[0] < sizes[1]
    account = FrameAccount()
    account.add(Rollout("push", 0, True, (Step(colours, np.zeros(2), (1,), "cloud"),), colours))
    assert f"p50 {sizes[0]:,} B, p99 {sizes[0]:,} B" in account.notes()[-1]


def test_an_episode_is_a_strip_and_a_film_with_the_source_on_every_frame(tmp_path: Path) -> None:
    shots = shots_of_rollout(Rollout("push", 0, True, tuple(step(1) for _ in range(20)), GREY))
    assert [shot.text for shot in (*shots[:2], shots[-1])] == ["1  cloud", "2  cloud", "done"]
    assert [shot.text for shot in spread(shots, 3)] == ["1  cloud", "11  cloud", "done"]
    write_strip(shots, tmp_path / "strip.png", count=4)
    with PillowImage.open(tmp_path / "strip.png") as strip:
        assert strip.size == (4 * 224 + 3 * 6, 250)
        assert strip.getpixel((2, 2)) == (0, 158, 115), "the colour of an executed action"
    different = [Shot(np.full_like(GREY, 40 * index), f"{index}", "#000000") for index in range(5)]
    write_film(different, tmp_path / "film.gif")
    with PillowImage.open(tmp_path / "film.gif") as film:
        assert getattr(film, "n_frames", 1) == 5


def test_a_run_s_film_goes_from_its_first_action_to_its_last(tmp_path: Path) -> None:
    states = ["INIT", "NOMINAL", "HOLD", "NOMINAL", "HOLD"]
    records = [StepRecord(tick, tick / 5, state, "", 1, (0.0,)) for tick, state in enumerate(states, start=1)]
    (tmp_path / STEPS_FILE).write_text("".join(record.to_json() + "\n" for record in records))
    done = Episode(0, 0, Outcome.SUCCESS, 3, 2)
    (tmp_path / "run.json").write_text(json.dumps({"episodes": [done.to_record()]}))
    (tmp_path / "frames").mkdir()
    for record in records:
        PillowImage.fromarray(GREY).save(tmp_path / "frames" / f"{record.tick:06}.jpg")
    assert [shot.text for shot in shots_of_run(tmp_path)] == ["0.4 s  cloud", "0.6 s  HOLD", "0.8 s  cloud", "done"]
