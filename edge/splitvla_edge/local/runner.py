"""The local policy at work: it acts on the newest frame while it is wanted, and is compared with the server's answers.

Rules of this file: `step` is the local thread's, `compare` the perception loop's; what they share is behind a lock or
one assignment. A graph that fails is switched off for good, with one line, and takes nothing else with it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

from splitvla_edge.answers import Answer
from splitvla_edge.embedder import Embedded
from splitvla_edge.fallback import LocalChunk
from splitvla_edge.local.agreement import Agreement
from splitvla_edge.local.graph import LocalPolicy
from splitvla_edge.local.settings import LocalSettings
from splitvla_edge.policy import EdgePolicy
from splitvla_edge.robots.base import Frame
from splitvla_shared.errors import ConfigError, RobotError, SplitVLAError
from splitvla_shared.nouns import ActionArray, FloatArray, Image


class Graph(Protocol):
    """What LocalPolicy does."""

    def act(self, patches: FloatArray, image: Image, instruction: int) -> ActionArray: ...


class LocalRunner:
    """Mutable state: the last frame and number, and whether it was switched off."""

    def __init__(
        self,
        policy: Graph,
        instruction: int,
        agreement: Agreement,
        embed: Callable[[tuple[Image, ...]], Embedded],
        to_robot: Callable[[ActionArray], ActionArray],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """instruction: its index in the policy's list. to_robot: normalised actions to the robot's units."""
        self._policy, self._instruction, self._agreement = policy, instruction, agreement
        self._embed, self._to_robot, self._clock = embed, to_robot, clock
        self._one_at_a_time = threading.Lock()
        self._last_frame = -1
        self._number = 0
        self._off = False

    def compare(self, answer: Answer) -> None:
        """The server has answered: what would the local policy have said?"""
        actions = self._act(answer.patches[0], answer.observation.images[0])
        if actions is not None:
            self._agreement.note(actions, answer.normalized)

    def step(self, latest: Callable[[float], Frame | None]) -> LocalChunk | None:
        """Its answer to the newest frame; None when there is no new one, or no answer."""
        try:
            frame = latest(self._clock())
            if self._off or frame is None or frame.index <= self._last_frame:
                return None
            self._last_frame = frame.index
            patches = self._embed((frame.image,)).patches[0]
        except RobotError:
            return None  # the perception loop says so
        except SplitVLAError as error:
            self._switch_off(error)
            return None
        actions = self._act(patches, frame.image)
        if actions is None:
            return None
        # Numbers must rise across a perception process that is started again, and the clock is the machine's.
        self._number = max(self._number + 1, int(self._clock() * 1e6))
        rows = tuple(tuple(row) for row in self._to_robot(actions).tolist())
        return LocalChunk(self._number, frame.captured_at, rows, *self._agreement.now)

    def _act(self, patches: FloatArray, image: Image) -> ActionArray | None:
        with self._one_at_a_time:
            if self._off:
                return None
            try:
                return self._policy.act(patches, image, self._instruction)
            except ConfigError as error:
                self._switch_off(error)
                return None

    def _switch_off(self, error: SplitVLAError) -> None:
        self._off = True
        print(f"splitvla-edge: {error}; the local policy is switched off", file=sys.stderr)


def open_runner(settings: LocalSettings, instruction: str, policy: EdgePolicy, *, needed: bool) -> LocalRunner | None:
    """The local policy, compared with the server's answers from now on; None without a file, or one that does not know
    the instruction, which is said.

    Raises ConfigError when the file can't be used, or does not know the instruction and is `needed`.
    """
    if settings.policy is None:
        return None
    spec = policy.model.spec
    graph = LocalPolicy(settings.policy, spec, policy.model.statistics)
    index = graph.index_of(instruction)
    if index is None:
        known = "; ".join(graph.declared.instructions)
        text = f"local policy {settings.policy} does not know {instruction!r}; it knows: {known:.300}"
        if needed:
            raise ConfigError(text)
        print(f"splitvla-edge: {text}; without it the robot holds when the server is away", file=sys.stderr)
        return None
    agreement = Agreement(spec.action_bins, settings.within_bins, policy.model.statistics.still)
    runner = LocalRunner(graph, index, agreement, policy.embed, policy.to_robot)
    policy.embed.share()
    policy.on_answer.append(runner.compare)
    return runner
