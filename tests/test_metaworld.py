"""The simulated world: its tasks, its actions, its determinism, and what it says where it can't draw."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from splitvla_edge.robots.metaworld.actions import MAX_STEP_M, from_metaworld, to_metaworld
from splitvla_edge.robots.metaworld.rendering import choose_gl
from splitvla_edge.robots.metaworld.tasks import BALLS, TASKS, find_task, place_balls
from splitvla_edge.robots.metaworld.world import World
from splitvla_shared.errors import ConfigError, RobotError
from tests.sim_fakes import needs_world

_REST = (0.0,) * 6 + (0.5,)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_an_unknown_task_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(ConfigError, match=r"metaworld task 'juggle' is unknown; one of reach-red, .*push"):
        find_task("juggle")


def test_balls_are_never_so_close_that_the_hand_is_at_two() -> None:
    for seed in range(200):
        places = list(place_balls(np.random.default_rng(seed)).values())
        gaps = [np.linalg.norm(places[i] - places[j]) for i in range(3) for j in range(i)]
        assert min(gaps) > 2 * 0.05


@pytest.mark.parametrize("opening", [0.0, 0.25, 1.0])
def test_an_action_comes_back_from_metaworlds_units(opening: float) -> None:
    action = np.array([0.01, -0.02, 0.04, 0.0, 0.0, 0.0, opening])
    assert from_metaworld(to_metaworld(action)) == pytest.approx(action)


def test_the_gripper_is_one_when_open_and_motion_is_limited() -> None:
    assert to_metaworld((1.0, -1.0, 0.0, 9.0, 9.0, 9.0, 1.0)).tolist() == [1.0, -1.0, 0.0, -1.0]
    assert to_metaworld((0.0,) * 6 + (0.0,)).tolist() == [0.0, 0.0, 0.0, 1.0]
    assert from_metaworld(np.array([5.0, 0.0, 0.0, 0.0]))[0] == MAX_STEP_M


@pytest.mark.parametrize("action", [(0.0,) * 4, (float("nan"),) + (0.0,) * 6])
def test_an_action_of_another_shape_or_not_finite_never_reaches_the_arm(action: tuple[float, ...]) -> None:
    with pytest.raises(RobotError, match="must be 7 finite numbers"):
        to_metaworld(action)


def test_the_gl_library_is_chosen_by_what_is_installed() -> None:
    environ: dict[str, str] = {}
    assert choose_gl(environ, lambda name: "libOSMesa.so" if name == "OSMesa" else None) == "osmesa"
    assert environ == {"MUJOCO_GL": "osmesa"}
    assert choose_gl({"MUJOCO_GL": "glfw"}, lambda name: None) == "glfw"


def test_a_gl_library_that_mujoco_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match="MUJOCO_GL is 'teapot'; one of egl, osmesa, glfw"):
        choose_gl({"MUJOCO_GL": "teapot"}, lambda name: None)


def test_without_a_gl_library_one_line_names_the_packages() -> None:
    with pytest.raises(ConfigError, match=r"libegl1 libegl-mesa0 libgl1-mesa-dri.*libosmesa6") as caught:
        choose_gl({}, lambda name: None)
    assert "\n" not in str(caught.value)


@needs_world
def test_an_action_before_the_first_reset_is_refused() -> None:
    with pytest.raises(RobotError, match="call reset first"):
        World().step(_REST)


@needs_world
@pytest.mark.parametrize("task", list(TASKS))
def test_the_scripted_expert_does_the_task(world: World, task: str) -> None:
    world.reset(task, seed=3)
    while world.steps < 60 and not world.success:
        world.step(world.expert_action())
    assert world.success


@needs_world
def test_the_same_seed_and_actions_give_the_same_pictures(world: World) -> None:
    pictures, hands = [], []
    for _ in range(2):
        world.reset("push", seed=5)
        for _ in range(12):
            world.step(world.expert_action())
        pictures.append(world.image())
        hands.append(world.hand)
        world.reset("push", seed=6)  # what came between must not show
    assert pictures[0].shape == (224, 224, 3)
    assert pictures[0].dtype == np.uint8
    assert (pictures[0] == pictures[1]).all()
    assert (hands[0] == hands[1]).all()


@needs_world
def test_only_the_instruction_tells_the_reach_tasks_apart(world: World) -> None:
    seen = []
    for colour in BALLS:
        world.reset(f"reach-{colour}", seed=8)
        seen.append((world.image(), world.instruction, world.expert_action()))
    images, instructions, actions = zip(*seen, strict=True)
    assert all((image == images[0]).all() for image in images)
    assert len(set(instructions)) == 3
    assert not np.allclose(actions[0], actions[1])


@needs_world
@pytest.mark.parametrize("colour", list(BALLS))
def test_reaching_one_ball_is_no_success_at_another(world: World, colour: str) -> None:
    others = [name for name in BALLS if name != colour]
    world.reset(f"reach-{colour}", seed=11)
    target = world.landmarks()[others[0]]
    for _ in range(20):
        way = np.clip(target - world.landmarks()["fingers"], -MAX_STEP_M, MAX_STEP_M)
        world.step([*way, 0.0, 0.0, 0.0, 0.5])
    assert np.linalg.norm(world.landmarks()["fingers"] - target) < 0.05
    assert not world.success


@needs_world
def test_a_zero_action_keeps_the_hand_where_it_came_to_rest(world: World) -> None:
    world.reset("button", seed=0)
    world.step([0.04, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5])
    for _ in range(10):
        world.step(_REST)
    before = world.hand
    for _ in range(10):
        world.step(_REST)
    assert np.linalg.norm(world.hand - before) < 0.002


@needs_world
def test_a_black_room_is_not_what_the_camera_sees(world: World) -> None:
    world.reset("reach-red", seed=1)
    red, green, blue = world.image().reshape(-1, 3).astype(int).T
    assert ((red > 150) & (green < 60) & (blue < 60)).sum() > 20
    assert ((blue > 120) & (red < 60)).sum() > 20
