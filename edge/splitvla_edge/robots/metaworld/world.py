"""The world itself: one arm, one camera and a task, moved one control step at a time by whoever owns it.

Rules of this file: it knows no clock and no model. The same task, seed and actions give the same pictures.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from splitvla_edge.robots.metaworld.actions import REPEATS, from_metaworld, to_metaworld
from splitvla_edge.robots.metaworld.rendering import Marker, Renderer, choose_gl
from splitvla_edge.robots.metaworld.tasks import BALL_RADIUS_M, BALLS, Position, Task, find_task, place_balls
from splitvla_shared.errors import ConfigError, RobotError
from splitvla_shared.nouns import ActionArray, Image

_GOAL_RADIUS_M = 0.04
_GOAL_COLOUR = (0.1, 0.65, 0.15)


class World:
    """A Sawyer arm at a table. Mutable state: the simulation of the current task, and one kept for each environment.

    A control step is 50 ms of simulated time: 20 Hz is the arm's own speed.
    """

    def __init__(self) -> None:
        """Raises ConfigError where the extra `sim` or a GL library is missing."""
        choose_gl()
        try:
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS
            from metaworld.policies import ENV_POLICY_MAP
        except ImportError as error:
            raise ConfigError(f"metaworld is not installed ({error}); pip install 'splitvla[sim]'") from error
        self._makers: Mapping[str, Any] = ALL_V3_ENVIRONMENTS
        self._experts: Mapping[str, Any] = ENV_POLICY_MAP
        self._environments: dict[str, Any] = {}
        self._renderers: dict[str, Renderer] = {}
        self._task: Task | None = None
        self._balls: dict[str, Position] = {}
        self._seen: Any = None
        self._success = False
        self._steps = 0

    def reset(self, task: str, seed: int) -> None:
        """Begin an episode. Raises ConfigError for a task that there is not."""
        self._task = find_task(task)
        environment = self._environment(self._task.environment)
        environment.seed(seed)
        self._seen, _ = environment.reset()
        self._balls = {}
        if self._task.ball is not None:
            self._balls = place_balls(np.random.default_rng(seed))
            environment._target_pos = self._balls[self._task.ball]
        self._success, self._steps = False, 0

    def step(self, action: Sequence[float] | ActionArray) -> None:
        """One control step with an action of seven numbers, see `actions`. Raises RobotError for any other."""
        environment = self._running()
        environment.curr_path_length = 0  # how long an episode may last is the caller's to decide
        for _ in range(REPEATS):
            self._seen, _, _, _, report = environment.step(to_metaworld(action))
            self._success = self._success or bool(report["success"])
        self._steps += 1

    def image(self) -> Image:
        """What the camera sees: uint8 (224, 224, 3)."""
        environment = self._running()
        name = self.task.environment
        if name not in self._renderers:
            self._renderers[name] = Renderer(environment.model)
        return self._renderers[name].draw(environment.data, self._markers())

    def expert_action(self, task: str | None = None) -> ActionArray:
        """What Meta-World's scripted expert would do now: (7,). It reads the simulator's state, not the picture.

        task: another one of the same scene, such as the reaching of another ball; None means this one.
        Raises ConfigError where the other task has another scene.
        """
        other = self.task if task is None else find_task(task)
        if other.environment != self.task.environment:
            raise ConfigError(f"metaworld: {other.name} can't be asked for in the scene of {self.task.name}")
        seen = self._seen.copy()
        if other.ball is not None:
            # The expert steers the hand, Meta-World measures the finger tips below it.
            seen[-3:] = self._balls[other.ball] + self.hand - self._running().tcp_center
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of every motion that the arm's limits will clip
            action = np.array(self._experts[other.environment]().get_action(seen), dtype=np.float64)
        action[:3] *= other.expert_gain
        return from_metaworld(action)

    @property
    def task(self) -> Task:
        if self._task is None:
            raise RobotError("metaworld: no episode has begun; call reset first")
        return self._task

    @property
    def instruction(self) -> str:
        return self.task.instruction

    @property
    def success(self) -> bool:
        """Whether the task was done at any step of this episode: Meta-World's own measure."""
        return self._success

    @property
    def steps(self) -> int:
        """Control steps since the reset."""
        return self._steps

    @property
    def hand(self) -> Position:
        """The hand, in metres."""
        return np.array(self._running().get_endeff_pos(), dtype=np.float64)

    @property
    def position(self) -> tuple[float, ...]:
        """As a real arm would report it: the hand's x, y and z in metres."""
        return tuple(self.hand.tolist())

    @property
    def gripper(self) -> float:
        """How far the fingers are apart, from 0 (closed) to 1 (open)."""
        self._running()
        return float(self._seen[3])

    def landmarks(self) -> dict[str, Position]:
        """Where the hand and the task's objects are, by name. For training only: no policy sees these."""
        environment = self._running()
        places = {"hand": self.hand, "fingers": np.array(environment.tcp_center)}
        if self._balls:
            return places | self._balls
        places["object"] = np.array(self._seen[4:7])
        if self.task.shows_goal:
            places["goal"] = np.array(environment._target_pos)
        return places

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _running(self) -> Any:
        return self._environments[self.task.environment]

    def _environment(self, name: str) -> Any:
        """The simulation of one Meta-World environment, made once: loading a model takes longer than a reset."""
        if name not in self._environments:
            environment = self._makers[name]()
            environment._set_task_called = True  # tasks here are drawn from a seed, not from Meta-World's list
            environment._freeze_rand_vec, environment.seeded_rand_vec = False, True
            # The expert of reach and push reads the goal. The space's bounds depend on it and are cached.
            environment._partially_observable = False
            del environment.sawyer_observation_space
            if name == "reach-v3":
                environment.model.geom("objGeom").rgba[3] = 0.0  # a red puck that has no part in the task
            self._environments[name] = environment
        return self._environments[name]

    def _markers(self) -> list[Marker]:
        if self.task.shows_goal:
            goal = np.array([*self._running()._target_pos[:2], 0.002])
            return [Marker(goal, _GOAL_RADIUS_M, _GOAL_COLOUR, flat=True)]
        return [Marker(place, BALL_RADIUS_M, BALLS[colour]) for colour, place in self._balls.items()]
