"""Samples to rows of the table, and to the sentences on what was reached. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.backbone.contenders import Timing

HEADER = (
    "precision",
    "engine",
    "draft",
    "robots",
    "passes",
    "prefill ms",
    "decode ms",
    "answer ms",
    "answers/s",
    "least ms",
    "as HF",
)
EAGER, STATIC, OURS = "HF generate()", "HF generate(), static cache", "ours"
NO_DRAFT = "none"


@dataclass(frozen=True, slots=True)
class Condition:
    """What was timed. draft: "none" or the share of its ids that were right."""

    precision: str
    engine: str
    draft: str = NO_DRAFT
    robots: int = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """All samples of a condition. walls_s: of each round of all robots together. least_s: the roofline's, if known."""

    condition: Condition
    timings: tuple[Timing, ...]
    walls_s: tuple[float, ...]
    least_s: float | None

    @property
    def p50_s(self) -> float:
        return float(np.median([timing.total_s for timing in self.timings]))

    @property
    def same(self) -> int:
        return sum(timing.same for timing in self.timings)

    @property
    def passes(self) -> float:
        return float(np.mean([timing.passes for timing in self.timings]))

    def row(self) -> list[str]:
        of = self.condition
        return [
            of.precision,
            of.engine,
            of.draft,
            str(of.robots),
            f"{self.passes:.1f}",
            quantiles_ms([timing.prefill_s for timing in self.timings]),
            quantiles_ms([timing.decode_s for timing in self.timings]),
            quantiles_ms([timing.total_s for timing in self.timings]),
            f"{of.robots * len(self.walls_s) / sum(self.walls_s):.3g}",
            "-" if self.least_s is None else f"{self.least_s * 1e3:.3g}",
            f"{self.same} of {len(self.timings)}",
        ]


def quantiles_ms(seconds: Sequence[float]) -> str:
    """p50 / p90 / p99."""
    return " / ".join(f"{value * 1e3:.3g}" for value in np.percentile(seconds, (50, 90, 99)))


def sentences(measured: Sequence[Measured], robots: int = 8) -> list[str]:
    """What the bars are held against, a sentence a precision."""
    by = {each.condition: each for each in measured}
    found = []
    for precision in dict.fromkeys(each.condition.precision for each in measured):
        eager, single, drafted = (
            by.get(Condition(precision, engine, draft))
            for engine, draft in ((EAGER, NO_DRAFT), (OURS, NO_DRAFT), (OURS, "100 %"))
        )
        if not (eager and single and drafted):  # one of them fell out
            continue
        text = (
            f"{precision}: at the median {eager.p50_s / single.p50_s:.2f} times as fast as HF generate() without a "
            f"draft, {eager.p50_s / drafted.p50_s:.2f} times with accepted drafts"
        )
        fleet, drafted_fleet = (by.get(Condition(precision, OURS, draft, robots)) for draft in (NO_DRAFT, "100 %"))
        if fleet and drafted_fleet:
            text += (
                f"; {robots} robots take {fleet.p50_s / single.p50_s:.2f} times the latency of one, and "
                f"{drafted_fleet.p50_s / drafted.p50_s:.2f} times where every draft is accepted"
            )
        found.append(text + ".")
    return found


def differing(measured: Sequence[Measured]) -> int:
    """Answers in fp32 that are not those of generate()."""
    return sum(len(each.timings) - each.same for each in measured if each.condition.precision == "fp32")
