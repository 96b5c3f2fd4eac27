"""The second stage of training the small policy: the language model alone, on patches that were computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from benchmarks.world.actor import load_policy
from benchmarks.world.batches import token_ids
from benchmarks.world.language import LanguageTrainer, Words, hearing_loss, language_begun, meaning_loss, naming_loss
from benchmarks.world.model import SIZES, Policy
from benchmarks.world.pictures import MEANT, Pictures
from benchmarks.world.seen import FOLDER, look, waiting
from benchmarks.world.shards import TASK_NAMES, Sample, Shard, shard_paths, write_shard
from benchmarks.world.vocabulary import word_place, write_words
from splitvla_edge.robots.metaworld.tasks import BALLS


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of balls, three sentences each, and one picture of a puck."""
    folder = tmp_path_factory.mktemp("frames")
    balls = [f"reach-{colour}" for colour in BALLS]
    write_shard(folder / "expert-00000-reach-red", [_sample(task, seed) for seed in (1, 2) for task in balls])
    write_shard(folder / "expert-00000-push", [_sample("push", 3)])
    return folder


@pytest.fixture(scope="module")
def run(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at the end of its first stage, whose towers have looked at every frame."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    write_words(folder, SIZES)
    torch.save({"smooth": Policy().state_dict(), "step": 7}, folder / "latest.pt")
    (folder / FOLDER).mkdir()
    policy = load_policy(folder).eval()
    for path in waiting(frames, folder / FOLDER):
        shard = Shard.open(path)
        np.save(folder / FOLDER / f"{path.name}.npy", look(policy, shard.images[shard.pictures()]))
    return folder


def _sample(task: str, seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    places = {"hand": np.array([0.0, 0.6, 0.25]), "fingers": np.array([0.0, 0.6, 0.2])}
    things = {"red": (-0.1, 0.6, 0.06), "green": (0.0, 0.75, 0.06), "blue": (0.1, 0.85, 0.06)}
    if task == "push":
        things = {"object": (0.05, 0.65, 0.02), "goal": (-0.1, 0.8, 0.02)}
    action = np.array([0.01 * (1 + TASK_NAMES.index(task)), -0.01, 0.0, 0.0, 0.0, 0.0, 0.5]).clip(-0.04, 0.04)
    return Sample(image, task, action, places | {name: np.array(place) for name, place in things.items()})


def test_a_picture_of_balls_is_one_picture(frames: Path) -> None:
    pictures = {path.name: Shard.open(path).pictures().tolist() for path in shard_paths(frames)}
    assert pictures == {"expert-00000-reach-red": [0, 3], "expert-00000-push": [0]}


def test_the_newest_rounds_are_looked_at_first_and_nothing_twice(tmp_path: Path) -> None:
    for name in ("expert-00000-push", "dagger1-00000-push", "dagger2-00000-push", "expert-00010-push"):
        (tmp_path / "frames" / name).mkdir(parents=True)
    np.save(tmp_path / "expert-00000-push.npy", np.zeros(1))
    names = [path.name for path in waiting(tmp_path / "frames", tmp_path)]
    assert names == ["dagger2-00000-push", "dagger1-00000-push", "expert-00010-push"]


def test_what_was_seen_is_what_the_policy_sees(frames: Path, run: Path) -> None:
    asked = Pictures(frames, run, seed=0).others(1, 256)
    with torch.no_grad():
        images = torch.from_numpy(np.array(Shard.open(frames / "expert-00000-push").images))
        patches = load_policy(run).eval().patches(images, torch.arange(256)[None])
    assert torch.allclose(asked.patches, patches, rtol=2e-3, atol=2e-2)  # float16


def test_balls_come_with_every_sentence_and_what_each_is_about(frames: Path, run: Path) -> None:
    asked = Pictures(frames, run, seed=0).balls(4, 48)
    assert asked.tasks.tolist() == [[TASK_NAMES.index(f"reach-{colour}") for colour in BALLS]] * 4
    assert asked.patches.shape == (4, 48, SIZES.llm_dim)
    assert (asked.keep.diff(dim=1) > 0).all()
    assert asked.normalised[0, :, 0].tolist() == pytest.approx([0.25, 0.5, 0.75])
    assert asked.meant[0, :, 0, 0].tolist() == pytest.approx([-0.1, 0.0, 0.1], abs=1e-6)
    assert asked.meant[:, :, 1].isnan().all()
    assert asked.there[:, :, 0].any(-1).all()
    assert not asked.there[:, :, 1].any()


def test_a_second_thing_is_where_the_sentence_says(frames: Path, run: Path) -> None:
    asked, words = Pictures(frames, run, seed=0).others(1, 48), Words.of(run)
    assert asked.meant[0, 0].numpy() == pytest.approx(np.array([[0.05, 0.05, -0.18], [-0.1, 0.2, -0.18]]), abs=1e-6)
    prompt = words.prompts[TASK_NAMES.index("push")]
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    named = [tokenizer.id_to_token(prompt[place]) for place in words.things[TASK_NAMES.index("push")].tolist()]
    assert named == ["\u2581puck", "\u2581goal"]


def test_a_word_that_is_not_in_the_sentence_has_no_place(run: Path) -> None:
    with pytest.raises(ValueError, match="not in list"):
        word_place(run, "reach the red ball", "green")
    with pytest.raises(ValueError, match="'zebra' is not one piece"):
        word_place(run, "reach the zebra", "zebra")


def test_where_a_head_looks_is_a_share_of_its_attention_and_no_other_sentences(run: Path) -> None:
    policy, words = load_policy(run), Words.of(run)
    tasks, numbers = torch.tensor([0, 1, 8]), torch.zeros(3, 7, dtype=torch.long)
    ids, lengths = token_ids(words.prompts, tasks, numbers, SIZES, torch.zeros(3, 7))
    places = torch.arange(ids.shape[1] - 7, ids.shape[1]).expand(1, 3, -1)
    keep, patches = torch.arange(0, 256, 8)[None], torch.randn(1, 32, SIZES.llm_dim)
    with torch.no_grad():
        _, thought = policy(patches, keep, ids[None], lengths[None])
        looks, hears = policy.attends(thought, 1, places)
        _, alone = policy(patches, keep, ids[None, 1:2], lengths[None, 1:2])
        looks_alone, hears_alone = policy.attends(alone, 1, places[:, 1:2])
    assert (looks.shape, hears.shape) == ((1, 3, 7, 32), (1, 3, 7, ids.shape[1]))
    assert (looks.sum(-1) + hears.sum(-1) < 1.0).all()  # the rest is BOS's
    assert (hears[:, :, :-1].triu(ids.shape[1] - 6) == 0).all()  # nothing that is not yet said
    assert torch.allclose(looks[:, 1:2], looks_alone, atol=1e-5)
    assert torch.allclose(hears[:, 1:2], hears_alone, atol=1e-5)


def test_looking_at_the_right_patch_costs_least() -> None:
    there = torch.tensor([[[[True, False], [False, False]]]])  # the second thing is not to be seen
    right, wrong = torch.tensor([[[[0.9, 0.1], [0.5, 0.5]]]]), torch.tensor([[[[0.1, 0.9], [0.5, 0.5]]]])
    assert naming_loss(right, there) == pytest.approx(-np.log(0.9), rel=1e-5)
    assert naming_loss(right, there) < naming_loss(wrong, there)


def test_hearing_the_words_that_name_things_costs_least() -> None:
    one, two = torch.tensor([[[1, 1]]]), torch.tensor([[[0, 2]]])
    hears = torch.tensor([[[[0.1, 0.8, 0.1]]]])
    assert hearing_loss(hears, one) == pytest.approx(-np.log(0.8), rel=1e-5)
    assert hearing_loss(hears, two) == pytest.approx(-np.log(0.1), rel=1e-5)


def test_what_is_meant_is_told_in_metres() -> None:
    meant = torch.tensor([[[[0.05, 0.0, 0.0], [np.nan] * 3]]])
    loss, off_m = meaning_loss(torch.zeros(1, 1, 3 * MEANT), meant)
    assert off_m == pytest.approx(0.05)
    assert loss == pytest.approx(0.25, rel=1e-5)  # one of three numbers is one unit off, half a unit beyond the bend


def test_only_the_language_model_moves_and_the_run_goes_on_where_it_was(frames: Path, run: Path) -> None:
    trainer, pictures, words = LanguageTrainer.start(run), Pictures(frames, run, seed=0), Words.of(run)
    before = {name: value.clone() for name, value in trainer.policy.state_dict().items()}
    assert not language_begun(run)
    for _ in range(2):
        trainer.learn(pictures, words, 8, 0.1)
    trainer.save(run)
    after = trainer.policy.state_dict()
    moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"language_model"}
    again = LanguageTrainer.start(run)
    assert language_begun(run)
    assert again.step == 2
    assert all(
        torch.equal(value, after[name])
        for name, value in again.policy.language_model.state_dict(prefix="language_model.").items()
    )
    assert torch.load(run / "latest.pt", weights_only=True)["step"] == 7


def test_sentences_about_one_picture_can_be_told_apart(frames: Path, run: Path) -> None:
    trainer, pictures, words = LanguageTrainer.start(run), Pictures(frames, run, seed=0), Words.of(run)
    losses = [trainer.learn(pictures, words, 8, 0.1) for _ in range(16)]
    assert losses[-1].action < losses[0].action
    assert losses[-1].auxiliary < 0.7 * losses[0].auxiliary
