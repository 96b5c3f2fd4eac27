"""The split against what a team would pick instead: the same machine, run, weights and frames, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.end_to_end.results import Section, Summary
from benchmarks.end_to_end.ways import Answered, Family, Way
from splitvla_shared.errors import LinkError
from splitvla_shared.nouns import Image

WARM_UP_ROUNDS = 2
_TRIES, _PAUSE_S = 4, 0.5
TEXT = """Robot is what the robot's machine computes before it sends and after it receives; server is what the server
says it took; wire is the rest of the round trip over the link, protocol included. `same answers` counts frames whose
whole answer is the reference's ({reference}), `same tokens` the tokens one by one; some ways promise them, the others
change pixels or round the embedding. {verdict}"""
_NOTHING_PROMISED = """None does here: only where all ways are known to compute in fp32 do they owe
each other's tokens, because PyTorch encodes in its backbone's precision and the split in float32."""
TITLE = "The same frame, every way to an action, milliseconds "  # over what
LEAST_KEPT = 0.9  # share of tokens that a lossy way must keep where no JPEG was measured to hold it against


@dataclass(frozen=True, slots=True)
class Measured:
    """All answers of one way, in the order of the frames. lost: calls that failed and were made again."""

    name: str
    family: Family
    answers: tuple[Answered, ...]
    lost: int = 0

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
    lost = dict.fromkeys(answers, 0)
    for turn in range(WARM_UP_ROUNDS + n):
        image = frames[turn * max(1, len(frames) // n) % len(frames)]
        for way in ways:
            answer, failed = _act(way, image, instruction)
            lost[way.name] += failed
            if turn >= WARM_UP_ROUNDS:
                answers[way.name].append(answer)
        step((turn + 1) / (WARM_UP_ROUNDS + n))
    return [Measured(way.name, way.family, tuple(answers[way.name]), lost[way.name]) for way in ways]


def _act(way: Way, image: Image, instruction: str, failed: int = 0) -> tuple[Answered, int]:
    """The answer, and how many calls were lost before it: on a machine that is too busy, connections go."""
    try:
        return way.act(image, instruction), failed
    except LinkError:
        if failed + 1 == _TRIES:
            raise
    time.sleep(_PAUSE_S)
    return _act(way, image, instruction, failed + 1)


def section(
    measured: Sequence[Measured],
    name: str = "alternatives",
    title: str = TITLE + "over loopback",
    *,
    promised: bool = True,
) -> Section:
    """promised: the exact ways owe the reference's tokens; without it the exact split is what all are held against."""
    reference = _reference(measured) if promised else _exact_split(measured)
    rows, metrics = [], {}
    for way in measured:
        metrics[way.name] = way.total
        same = agreement(way, reference)
        rows.append(
            (
                way.name,
                way.family.value,
                f"{way.up_bytes:,}" if way.up_bytes else "-",
                *way.total.cells(),
                *(f"{way.median(part):.1f}" for part in _PARTS.values()),
                f"{same} of {len(way.answers)}",
                f"{tokens_kept(way, reference):.0%}",
                "promised" if way.family.exact and promised else "",
            )
        )
    wrong = differing(measured) if promised else []
    verdict = f"NOT THE SAME: {', '.join(wrong)}." if wrong else "All of these are the same here."
    verdict = verdict if promised else _NOTHING_PROMISED
    if lost := sum(way.lost for way in measured):
        verdict += f" {lost} calls were lost on the way and made again."
    return Section(
        name=name,
        title=title,
        header=(
            *("way", "what crosses the link", "bytes up", "p50", "p90", "p99", "max", *_PARTS),
            *("same answers", "same tokens", ""),
        ),
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
    reference = _reference(measured)
    return [way.name for way in measured if way.family.exact and agreement(way, reference) < len(way.answers)]


def tokens_kept(way: Measured, reference: Measured) -> float:
    """Share of the reference's tokens that this way gave too."""
    pairs = [
        (mine, theirs)
        for way_s, reference_s in zip(way.answers, reference.answers, strict=True)
        for mine, theirs in zip(way_s.tokens, reference_s.tokens, strict=True)
    ]
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs)


def worth_choosing(measured: Sequence[Measured]) -> list[Measured]:
    """Without rungs that keep fewer tokens than a JPEG does: they are fast, and what they make is another action."""
    reference = _exact_split(measured)
    jpegs = [tokens_kept(way, reference) for way in measured if way.family is Family.JPEG]
    least = max(jpegs, default=LEAST_KEPT)  # a JPEG that PyTorch encodes loses tokens by another precision too
    return [way for way in measured if way.family is not Family.LOSSY or tokens_kept(way, reference) >= least]


def _reference(measured: Sequence[Measured]) -> Measured:
    return next(way for way in measured if way.family.exact)


def _exact_split(measured: Sequence[Measured]) -> Measured:
    """What a rung changes is told by the same engines without it; without the split, by the reference."""
    return next((way for way in measured if way.family is Family.SPLIT), _reference(measured))
