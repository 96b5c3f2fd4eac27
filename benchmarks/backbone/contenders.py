"""Who is timed: transformers' generate(), and our engine alone with drafts and with several robots at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.backbone.roofline import synchronise
from benchmarks.hf_generate import generate
from splitvla_cloud.backbone import Backbone
from splitvla_cloud.engine.interface import Frame, Tokens
from splitvla_shared.nouns import FloatArray

DIMS, PROMPT_IDS = 7, 24


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A prompt with its patches, and the ids that generate() gives in the model's precision."""

    prompt: tuple[int, ...]
    patches: FloatArray
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """One answer. total_s is prefill and decoding; passes: forward passes until it was whole. same: as Case.tokens."""

    prefill_s: float
    decode_s: float
    total_s: float
    passes: int
    same: bool


# A round: frames that come at the same time, and their answers in the order in which they end.
Contender = Callable[[Sequence[Case]], list[Timing]]


def make_cases(model: Any, vocabulary: int, patches: int, count: int, random: np.random.Generator) -> list[Case]:
    """Random prompts of one length, so that a compiled generate() is compiled once."""
    cases = []
    for _ in range(count):
        prompt = (1, *(int(number) for number in random.integers(3, vocabulary, PROMPT_IDS - 1)))
        shown = random.standard_normal((patches, model.config.hidden_size), dtype=np.float32)
        cases.append(Case(prompt, shown, tuple(generate(model, prompt, shown, DIMS))))
    return cases


def library(model: Any, device: str, cache: str | None) -> Contender:
    """generate(), frame by frame, its cache growing or static; transformers compiles for the latter on CUDA."""

    def answer(case: Case) -> Timing:
        marks: list[float] = []

        def mark() -> None:
            if not marks:
                synchronise(device)
            marks.append(time.perf_counter())

        synchronise(device)
        began = time.perf_counter()
        ids = tuple(generate(model, case.prompt, case.patches, DIMS, cache, mark))
        ended = time.perf_counter()
        return Timing(marks[0] - began, ended - marks[0], ended - began, DIMS, ids == case.tokens)

    return lambda cases: [answer(case) for case in cases]


def ours(backbone: Backbone, accepted: float | None, vocabulary: int, random: np.random.Generator) -> Contender:
    """Our engine, with all frames of a round at once. accepted: share of a draft's ids that are right, or no draft."""

    def answer(cases: Sequence[Case]) -> list[Timing]:
        frames = {}
        for number, case in enumerate(cases):
            draft = () if accepted is None else make_draft(case.tokens, accepted, vocabulary, random)
            frames[Frame(number, 1, case.prompt, case.patches, DIMS, math.inf, draft)] = case
        return _serve(backbone, frames)

    return answer


def _serve(backbone: Backbone, frames: Mapping[Frame, Case]) -> list[Timing]:
    began, passes, timings = time.perf_counter(), 0, list[Timing]()
    try:
        for frame in frames:
            backbone.admit(frame)
        while len(timings) < len(frames):
            ended = backbone.step()
            now, passes = time.perf_counter(), passes + 1
            for outcome in ended:
                if not isinstance(said := outcome.result, Tokens):
                    raise said
                same = said.ids == frames[outcome.frame].tokens
                timings.append(Timing(said.prefill_ms / 1e3, said.decode_ms / 1e3, now - began, passes, same))
    finally:
        for frame in frames:  # where one of them failed, the others are still in
            backbone.cancel(frame)
    return timings


def make_draft(tokens: Sequence[int], accepted: float, vocabulary: int, random: np.random.Generator) -> tuple[int, ...]:
    """Each id right with the probability `accepted`, by its own throw; a wrong one is the next id of the vocabulary."""
    right = random.random(len(tokens)) < accepted
    return tuple(token if good else (token + 1) % vocabulary for token, good in zip(tokens, right, strict=True))
