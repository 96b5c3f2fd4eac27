"""A policy server's worker whose steps the test takes, in front of a policy that answers as it is told."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from splitvla_edge.policy_server.complaints import Complaints
from splitvla_edge.policy_server.request import ActionRequest
from splitvla_edge.policy_server.worker import Job, PolicyWorker
from splitvla_shared.errors import SplitVLAError
from splitvla_shared.nouns import ActionChunk, Observation, Scheme
from splitvla_shared.operator_lines import say
from splitvla_shared.rungs import Rung
from tests.edge_fakes import Clock

REQUEST = ActionRequest((np.zeros((2, 2, 3), np.uint8),), "lift the pot", "arm")
RUNGS = (Rung("bf16", Scheme.BF16, 2000), Rung("int8", Scheme.INT8, 1000), Rung("int4", Scheme.INT4, 500))
CHUNK = ActionChunk(0, np.ones((1, 7)), "cloud", tokens=(1,) * 7)


class FakePolicy:
    """Answers with `acts` and then with CHUNK; an answer takes `cost_s` on the clock."""

    def __init__(self, clock: Clock, cost_s: float = 0.1) -> None:
        self.clock, self.cost_s = clock, cost_s
        self.rungs = RUNGS
        self.handshakes: list[SplitVLAError | None] = []
        self.acts: list[ActionChunk | Exception] = []
        self.asked: list[tuple[Observation, float, str]] = []
        self.greeted = 0

    def handshake(self, timeout_s: float) -> None:
        self.greeted += 1
        error = self.handshakes.pop(0) if self.handshakes else None
        if error is not None:
            raise error

    def act(self, observation: Observation, *, deadline_s: float, rung: Rung) -> ActionChunk:
        self.clock.now += self.cost_s
        self.asked.append((observation, deadline_s, rung.name))
        outcome = self.acts.pop(0) if self.acts else CHUNK
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None: ...


class Rig:
    """A worker whose steps the test takes, on a clock that stands still."""

    def __init__(self, **options: Any) -> None:
        self.clock, self.told = Clock(), io.StringIO()
        self.policy = FakePolicy(self.clock)
        self.complaints = Complaints(lambda line: say(line, self.told), self.clock)
        self.worker = PolicyWorker(self.policy, self.complaints, clock=self.clock, **options)

    def agreed(self) -> Rig:
        self.worker.step()
        return self

    def job(self, deadline_s: float = 1.0) -> Job:
        job = Job(REQUEST, self.clock.now, deadline_s)
        self.worker.submit(job)
        return job

    def failure(self, job: Job) -> BaseException | None:
        return job.answer.exception(timeout=0)
