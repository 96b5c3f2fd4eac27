"""The split against what a team would pick instead: same machine, same run, same weights, same frames, round by round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.latency.results import Section, Summary
from benchmarks.latency.ways import Answered, Way
from splitvla_shared.nouns import Image

WARM_UP_ROUNDS = 2
TEXT = (
    "Robot is what the robot's machine computes before it sends and after it receives; server is what the server says "
    "it took; wire is the rest of the round trip over loopback, protocol included. `same tokens` counts frames whose "
    "whole answer is the reference's ({reference}); ways marked `exact` promise that, the others change pixels or "
    "round the embedding. {verdict}"
)


@dataclass(frozen=True, slots=True)
class Measured:
    """All answers of one way, in the order of the frames."""

    name: str
    model_on: str
    exact: bool
    answers: tuple[Answered, ...]

    @property
    def total(self) -> Summary:
        return Summary.of([answer.total_ms for answer in self.answers])

    def median(self, part: Callable[[Answered], float]) -> float:
        return Summary.of([part(answer) for answer in self.answers]).p50

    @property
    def up_bytes(self) -> int:
        return round(self.median(lambda answer: answer.up_bytes))

    @property
    def down_bytes(self) -> int:
        return round(self.median(lambda answer: answer.down_bytes))


def measure(
    ways: Sequence[Way],
    frames: Sequence[Image],
    instruction: str,
    n: int,
    step: Callable[[float], object] = lambda share: None,
) -> list[Measured]:
    """Each way with the same `n` frames, a frame at a time; step: gets the share that is done."""
    answers: dict[str, list[Answered]] = {way.name: [] for way in ways}
    for turn in range(WARM_UP_ROUNDS + n):
        image = frames[turn * max(1, len(frames) // n) % len(frames)]
        for way in ways:
            answer = way.act(image, instruction)
            if turn >= WARM_UP_ROUNDS:
                answers[way.name].append(answer)
        step((turn + 1) / (WARM_UP_ROUNDS + n))
    return [Measured(way.name, way.model_on, way.exact, tuple(answers[way.name])) for way in ways]


def section(measured: Sequence[Measured]) -> Section:
    reference = next(way for way in measured if way.exact)
    rows, metrics = [], {}
    for way in measured:
        metrics[way.name] = way.total
        same = agreement(way, reference)
        rows.append(
            (
                way.name,
                way.model_on,
                f"{way.up_bytes:,}" if way.up_bytes else "-",
                *way.total.cells(),
                *(f"{way.median(part):.1f}" for part in _PARTS.values()),
                f"{same} of {len(way.answers)}",
                "exact" if way.exact else "",
            )
        )
    wrong = differing(measured)
    verdict = f"NOT THE SAME: {', '.join(wrong)}." if wrong else "All of these are the same here."
    return Section(
        name="alternatives",
        title="The same frame, every way to an action, milliseconds over loopback",
        header=("way", "backbone on", "bytes up", "p50", "p90", "p99", "max", *_PARTS, "same tokens", ""),
        rows=tuple(rows),
        n=len(reference.answers),
        metrics=metrics,
        text=TEXT.format(reference=reference.name, verdict=verdict),
        packages=("grpcio", "onnxruntime", "torch", "transformers", "fastapi", "websockets"),
    )


_PARTS: Mapping[str, Callable[[Answered], float]] = {
    "robot": lambda answer: answer.robot_ms,
    "wire": lambda answer: answer.wire_ms,
    "server": lambda answer: answer.server_ms,
}


def agreement(way: Measured, reference: Measured) -> int:
    """Frames for which both gave the same tokens and, bit by bit, the same action."""
    pairs = zip(way.answers, reference.answers, strict=True)
    return sum((mine.tokens, mine.action) == (theirs.tokens, theirs.action) for mine, theirs in pairs)


def differing(measured: Sequence[Measured]) -> list[str]:
    """Ways that promise the reference's answer and did not give it for every frame."""
    reference = next(way for way in measured if way.exact)
    return [way.name for way in measured if way.exact and agreement(way, reference) < len(way.answers)]
