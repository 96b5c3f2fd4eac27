"""Episodes for learning and for judging: what is recorded, what labels it, and when an episode ends."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from benchmarks.world.generate import EPISODE_STEPS, FIRST_TEST_SEED, Perturbation, episode_seeds, expert_episode
from benchmarks.world.rollout import Episode, Job, black, run
from benchmarks.world.shards import TASK_NAMES
from splitvla_edge.robots.metaworld.rendering import choose_gl
from splitvla_edge.robots.metaworld.world import World
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import ActionArray, Image


@pytest.fixture(scope="module")
def worlds() -> Iterator[list[World]]:
    if importlib.util.find_spec("metaworld") is None:
        pytest.skip("the extra `sim` is not installed")
    try:
        choose_gl()
    except ConfigError as error:
        pytest.skip(str(error))
    worlds = [World() for _ in range(2)]
    yield worlds
    for world in worlds:
        world.close()


def _still(images: Sequence[Image], instructions: Sequence[str]) -> ActionArray:
    return np.tile(np.array([0.0] * 6 + [0.5]), (len(images), 1))


def test_no_task_shares_a_seed_with_another_or_with_the_evaluation() -> None:
    ranges = [episode_seeds(0, task, 0, 20_000) for task in TASK_NAMES]
    assert all(before.stop <= after.start for before, after in itertools.pairwise(ranges))
    assert ranges[-1].stop <= FIRST_TEST_SEED


def test_noise_moves_the_arm_and_leaves_the_experts_action_alone() -> None:
    perturb, action = Perturbation(np.random.default_rng(0)), np.array([0.01] * 3 + [0.0] * 3 + [0.5])
    moved = [perturb(action) for _ in range(100)]
    assert action.tolist() == [0.01] * 3 + [0.0] * 3 + [0.5]
    assert 10 < sum(not np.array_equal(step, action) for step in moved) < 60
    assert all((step[3:6] == 0).all() and 0 <= step[6] <= 1 for step in moved)


def test_a_frame_of_the_balls_is_labelled_once_for_each_ball(worlds: list[World]) -> None:
    samples = list(expert_episode(worlds[0], "reach-green", seed=2))
    assert [sample.task for sample in samples[:3]] == ["reach-red", "reach-green", "reach-blue"]
    assert samples[0].image is samples[2].image
    assert not np.allclose(samples[0].action, samples[2].action)


def test_the_same_seed_gives_the_same_frames(worlds: list[World]) -> None:
    first, again = (list(expert_episode(world, "button", seed=7)) for world in worlds)
    assert len(first) == len(again)
    assert all((a.image == b.image).all() and (a.action == b.action).all() for a, b in zip(first, again, strict=True))


def test_an_episode_in_which_nothing_is_done_ends_at_the_limit(worlds: list[World]) -> None:
    (episode,) = run(_still, [Job("push", 1)], worlds)
    assert (episode.world.steps, episode.world.success) == (EPISODE_STEPS, False)
    assert len(episode.actions) == EPISODE_STEPS


def test_every_job_is_done_once_though_there_are_fewer_worlds(worlds: list[World]) -> None:
    jobs = [Job("reach-red", seed) for seed in range(5)]
    episodes: list[Episode] = []

    def expert(images: Sequence[Image], instructions: Sequence[str]) -> ActionArray:
        return np.stack([episode.world.expert_action() for episode in watched[-len(images) :]])

    watched: list[Episode] = []
    for episode in run(expert, jobs, worlds, lambda episode, image: watched.append(episode)):
        assert episode.world.success
        episodes.append(episode)
    assert sorted(episode.job.seed for episode in episodes) == [0, 1, 2, 3, 4]


def test_with_eyes_shut_the_policy_is_given_black_pictures() -> None:
    seen: list[Image] = []

    def act(images: Sequence[Image], instructions: Sequence[str]) -> ActionArray:
        seen.extend(images)
        return _still(images, instructions)

    black(act)([np.full((2, 2, 3), 200, np.uint8)], ["reach the red ball"])
    assert not seen[0].any()
