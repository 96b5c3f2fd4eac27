"""The small policy: what it computes is what the product computes, and its checkpoint is an ordinary one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.checkpoint.weights import plan
from benchmarks.world.actor import Actor, load_policy
from benchmarks.world.batches import Frames, token_ids
from benchmarks.world.camera import project
from benchmarks.world.evaluate import wrong_colour_jobs
from benchmarks.world.export import export, to_checkpoint
from benchmarks.world.losses import action_loss, auxiliary_loss
from benchmarks.world.model import SIZES, Policy
from benchmarks.world.shards import LANDMARKS, OBJECTS, TASK_NAMES, Sample, Shard, shard_paths, write_shard
from benchmarks.world.vocabulary import bins, normalised, prompt_ids, unnormalised, write_words
from splitvla_cloud.__main__ import main as cloud_main
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_edge.robots.metaworld.tasks import TASKS

_INSTRUCTIONS = ("reach the red ball", "push the puck to the green goal", "open the drawer")


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.manual_seed(0)
    return Policy()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    write_words(folder, SIZES)
    return folder


@pytest.fixture(scope="module")
def run(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run that has not begun."""
    folder = tmp_path_factory.mktemp("run")
    torch.save({"smooth": policy.state_dict()}, folder / "latest.pt")
    return folder


def _images(count: int, seed: int = 0) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(count)]


def _sample(task: str, seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    places = {
        "hand": rng.uniform((-0.2, 0.5, 0.1), (0.2, 0.8, 0.3)),
        "fingers": rng.uniform((-0.2, 0.5, 0.1), (0.2, 0.8, 0.3)),
    }
    action = np.array([0.04, -0.01, 0.002, 0.0, 0.0, 0.0, 0.5])
    return Sample(_images(1, seed)[0], task, action, {**places, "object": np.array([0.0, 0.7, 0.05])})


def test_patches_are_those_of_the_products_own_encoder(policy: Policy) -> None:
    image = torch.from_numpy(np.stack(_images(2)))
    everything = torch.arange(256).expand(2, -1)
    with torch.no_grad():
        assert torch.allclose(policy.patches(image, everything), policy.edge(image), atol=1e-4)


def test_the_tokens_that_training_would_predict_are_those_said_with_a_cache(policy: Policy, words: Path) -> None:
    images = _images(3)
    said = Actor(policy, words).tokens(images, _INSTRUCTIONS)
    prompts = [prompt_ids(words, text) for text in _INSTRUCTIONS]
    wide = max(map(len, prompts))
    padded = torch.tensor([[0] * (wide - len(prompt)) + prompt for prompt in prompts])
    everything = torch.arange(256).expand(3, -1)
    lengths = torch.tensor([[len(prompt) + 6] for prompt in prompts])
    with torch.no_grad():
        patches = policy.patches(torch.from_numpy(np.stack(images)), everything)
        logits, _ = policy(patches, everything, torch.cat([padded, said[:, :-1]], dim=1)[:, None], lengths)
    assert (logits[:, 0].argmax(-1) == said).all()


def test_sentences_about_one_picture_do_not_hear_each_other(policy: Policy, words: Path) -> None:
    tasks, bins_said = torch.tensor([0, 8, 4]), torch.arange(21).reshape(3, 7)
    prompts = [prompt_ids(words, TASKS[name].instruction) for name in TASK_NAMES]
    ids, lengths = token_ids(prompts, tasks, bins_said, SIZES, torch.zeros(3, 7))
    keep = torch.arange(0, 256, 4)[None]
    with torch.no_grad():
        patches = policy.patches(torch.from_numpy(np.stack(_images(1))), keep)
        together, thought = policy(patches, keep, ids[None], lengths[None])
        for number in range(3):
            which = slice(number, number + 1)
            alone, alone_thought = policy(patches, keep, ids[None, which], lengths[None, which])
            assert torch.allclose(together[:, which], alone, atol=1e-4)
            assert torch.allclose(thought.ends()[:, which], alone_thought.ends(), atol=1e-4)


def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(policy: Policy, words: Path) -> None:
    actor, images = Actor(policy, words), _images(2)
    together = actor.tokens(images, _INSTRUCTIONS[:2])
    assert (together[:1] == actor.tokens(images[:1], _INSTRUCTIONS[:1])).all()


def test_an_action_survives_its_tokens_to_half_a_bin() -> None:
    actions = np.array([[0.031, -0.04, 0.0001, 0.0, 0.0, 0.0, 0.3]], dtype=np.float32)
    ids = SIZES.action_vocab_size - 1 - bins(normalised(actions))
    back = unnormalised(ids, SIZES)
    assert np.abs(back - actions)[0, :6].max() <= 0.04 / 255 + 1e-9
    assert abs(back[0, 6] - 0.3) <= 1 / 255 + 1e-9


def test_every_task_has_words_that_the_tokenizer_knows(words: Path) -> None:
    prompts = {tuple(prompt_ids(words, task.instruction)) for task in TASKS.values()}
    assert len(prompts) == len(TASKS)
    assert all(0 not in prompt for prompt in prompts)  # <unk>


def test_a_shard_comes_back_and_an_unfinished_one_is_not_seen(tmp_path: Path) -> None:
    write_shard(tmp_path / "one", [_sample("push", 1), _sample("button", 2)])
    (tmp_path / ".two.part").mkdir()
    (path,) = shard_paths(tmp_path)
    shard = Shard.open(path)
    assert [TASK_NAMES[task] for task in shard.tasks] == ["push", "button"]
    assert (shard.images[1] == _sample("button", 2).image).all()
    assert np.isnan(shard.landmarks[0, LANDMARKS.index("red")]).all()
    assert shard.landmarks[0, LANDMARKS.index("puck")].tolist() == pytest.approx([0.0, 0.7, 0.05])


def test_patches_near_a_landmark_are_never_left_out(tmp_path: Path, policy: Policy) -> None:
    write_shard(tmp_path / "one", [_sample(task, seed) for seed, task in enumerate(OBJECTS)])
    frames = Frames(tmp_path, seed=0)
    few, whole = frames.batch(16, 64, 44), frames.batch(16, 256, 256)
    assert few.keep.shape == (16, 64)
    assert (few.keep.diff(dim=1) > 0).all()
    assert few.here.shape == (16, 44, len(LANDMARKS))
    per_landmark = whole.here.sum((0, 1)).float() / whole.places[:, :, 0].isfinite().sum(0).clamp(min=1)
    seen = few.here.sum((0, 1)).float() / few.places[:, :, 0].isfinite().sum(0).clamp(min=1)
    fingers = LANDMARKS.index("fingers")
    assert seen[fingers] == pytest.approx(float(per_landmark[fingers]), abs=0.6)


def test_one_batch_can_be_learned_by_heart(tmp_path: Path, words: Path) -> None:
    write_shard(tmp_path / "one", [_sample("push", 1), _sample("button", 2)])
    torch.manual_seed(0)
    policy, batch = Policy(), Frames(tmp_path, seed=0).batch(4, 64, 44)
    prompts = [prompt_ids(words, TASKS[name].instruction) for name in TASK_NAMES]
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        ids, lengths = token_ids(prompts, batch.tasks, batch.bins, SIZES, torch.zeros(4, 7))
        patches = policy.patches(batch.images, batch.keep, batch.onward)
        logits, _ = policy(patches, batch.keep.gather(1, batch.onward), ids[:, None], lengths[:, None])
        loss = action_loss(logits[:, 0], batch.normalised, SIZES) + auxiliary_loss(policy.auxiliary(patches), batch)[0]
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_the_exported_names_are_those_of_openvla(policy: Policy) -> None:
    assert set(to_checkpoint(policy.state_dict(), SIZES)) == {tensor.name for tensor in plan(SIZES, "fused")}


def test_the_exported_checkpoint_acts_as_the_run_that_it_came_from(run: Path, words: Path, tmp_path: Path) -> None:
    export(run, tmp_path)
    images = _images(2)
    expected = Actor(load_policy(run), words).tokens(images, _INSTRUCTIONS[:2])
    assert (Actor.load(tmp_path).tokens(images, _INSTRUCTIONS[:2]) == expected).all()


def test_the_exported_checkpoint_is_split_and_verified_like_any_other(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "checkpoint")
    source = Checkpoint.open(tmp_path / "checkpoint")
    assert source.vision.patches == 256
    assert cloud_main(["split", str(tmp_path / "checkpoint"), "--out", str(tmp_path / "bundles")]) == 0
    assert cloud_main(["verify", str(tmp_path / "checkpoint"), "--bundles", str(tmp_path / "bundles")]) == 0


def test_a_point_in_the_middle_of_the_camera_is_in_the_middle_of_the_picture() -> None:
    assert project(np.array([0.0, 0.7, 0.12])) == pytest.approx([112.0, 112.0])
    right = project(np.array([0.0, 0.8, 0.12]))
    assert right[0] > 120  # the arm reaches to the right
    assert right[1] == pytest.approx(112.0)


def test_a_wrong_colour_is_never_the_right_one() -> None:
    for job in wrong_colour_jobs(1):
        assert job.instruction != TASKS[job.task].instruction
