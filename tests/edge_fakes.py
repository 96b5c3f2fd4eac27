"""Fakes of what EdgePolicy uses: a clock that stands still, an encoder and a link that take their time on it."""

from __future__ import annotations

import dataclasses

import numpy as np

from splitvla_edge.link.calls import InferCall, Reply, ServerDescription, ServerStages
from splitvla_shared.errors import SplitVLAError
from splitvla_shared.nouns import FloatArray, Image, Scheme
from tests.fake_server import SPEC

STATISTICS = {
    "arm": {"action": {"q01": [-2.0] * 6 + [0.0], "q99": [4.0] * 6 + [1.0], "mask": [True] * 6 + [False]}},
    "hand": {"action": {"q01": [0.0, 0.0], "q99": [1.0, 1.0]}},
}
# The normalised centre of id 31872, exactly zero.
MIDDLE = 31872


class Clock:
    """Monotonic seconds that move only when a fake takes its time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeEncoder:
    """Every patch holds the image's mean; an image takes `cost_s`."""

    def __init__(self, clock: Clock, cost_s: float = 0.04) -> None:
        self.clock, self.cost_s = clock, cost_s
        self.images: list[Image] = []

    def embed(self, image: Image) -> FloatArray:
        self.clock.now += self.cost_s
        self.images.append(image)
        return np.full((SPEC.patches, SPEC.embed_dim), image.mean(), np.float32)

    def coefficients(self, image: Image) -> FloatArray:
        """As with the identity for a basis and a mean of zero."""
        return self.embed(image)


class FakeLink:
    """Answers with `outcome` after `cost_s`; keeps every call and the deadline it was given."""

    def __init__(self, clock: Clock, cost_s: float = 0.05) -> None:
        self.clock, self.cost_s = clock, cost_s
        self.server = ServerDescription(SPEC, tuple(Scheme))
        self.outcome: Reply | SplitVLAError = Reply(0, tokens=(MIDDLE,) * 7, stages=ServerStages(1, 2, 3, 4, 20))
        self.calls: list[InferCall] = []
        self.deadlines: list[float] = []
        self.address = "fake:1"
        self.closed = False

    def describe(self, timeout_s: float) -> ServerDescription:
        return self.server

    def infer(self, request: InferCall, deadline_s: float) -> Reply:
        self.clock.now += self.cost_s
        self.calls.append(request)
        self.deadlines.append(deadline_s)
        if isinstance(self.outcome, SplitVLAError):
            raise self.outcome
        return dataclasses.replace(self.outcome, sequence=request.sequence, server=self.address)

    def close(self) -> None:
        self.closed = True
