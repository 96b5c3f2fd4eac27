"""The sweep's table and its picture: success against delay, and on each link, with the ladder and without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no screen is needed, and none is looked for

import matplotlib.pyplot as plt

from benchmarks.closed_loop.sweep import BARE, LADDER, PATIENT, Outcome
from benchmarks.report import wilson

HEADER = (
    *("condition", "client", "done", "success", "95 % interval", "steps p50", "ticks with an action"),
    "oldest picture acted on, ms",
)
_STYLES = {LADDER: ("#0072B2", "o-"), PATIENT: ("#56B4E9", "^--"), BARE: ("#D55E00", "s:")}
_LABELS = {
    LADDER: "fallback ladder",
    PATIENT: "ladder, pictures up to 1.5 s old",
    BARE: "plain: waits, then acts",
}
_TEXT = """The world goes on at {hz:g} control ticks a second, while {tasks} are done from seeds that were never
trained on; an episode may take {seconds:g} s from its first action. Delay is added to every round trip. The plain
client is the loop of OpenVLA's examples: it asks, the arm stands until the answer comes, and it acts on it whatever its
age. Both start with the same payload ({scheme}), and only the ladder may change it. The ladder refuses pictures older
than 300 ms, so that beyond this it stands still by design; {patient!r} is told to accept 1.5 s. Nothing moves in these
scenes but the arm, which is the kindest case for old pictures: the last column is what a scene with a person in it
would be exposed to."""


def rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    return [_row(outcome) for outcome in outcomes]


def _row(outcome: Outcome) -> tuple[str, ...]:
    n, done, steps = outcome.episodes, outcome.successes, outcome.steps
    low, high = wilson(done, n)
    return (
        f"{outcome.condition.kind} {outcome.condition.value}",
        outcome.condition.client,
        f"{done}/{n}",
        f"{done / n:.0%}",
        f"{low:.0%} to {high:.0%}",
        str(steps[len(steps) // 2]) if steps else "-",
        f"{outcome.moving:.0%}",
        f"{outcome.oldest_s * 1e3:,.0f}" if outcome.oldest_s else "-",
    )


def text(outcomes: Sequence[Outcome]) -> str:
    how = outcomes[0].condition.evaluation
    return _TEXT.format(
        hz=how.control_hz,
        tasks=" and ".join(how.tasks),
        seconds=how.steps / how.control_hz,
        scheme=how.scheme,
        patient=PATIENT,
    )


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Success against delay on the left; each trace and each precision on the right."""
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.0), sharey=True, width_ratios=(1, 1.3), layout="constrained"
    )
    _draw_delays(left, [each for each in outcomes if each.condition.kind == "delay"])
    _draw_others(right, [each for each in outcomes if each.condition.kind != "delay"])
    left.set_ylabel("episodes done, with 95 % interval")
    left.set_ylim(-0.03, 1.05)
    left.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    figure.suptitle("Tasks done while the world goes on", x=0.01, ha="left", fontweight="bold")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_delays(axis: Any, outcomes: Sequence[Outcome]) -> None:
    for shift, (client, (colour, style)) in enumerate(_STYLES.items(), start=-1):
        mine = [each for each in outcomes if each.condition.client == client]
        delays = [
            each.condition.evaluation.delay_ms + 8 * shift for each in mine
        ]  # so that intervals can be told apart
        _errorbars(axis, delays, mine, colour, style, _LABELS[client])
    axis.set_xlabel("milliseconds added to every round trip")


def _draw_others(axis: Any, outcomes: Sequence[Outcome]) -> None:
    names = list(dict.fromkeys(each.condition.value for each in outcomes))
    for shift, (client, (colour, style)) in enumerate(_STYLES.items(), start=-1):
        mine = [each for each in outcomes if each.condition.client == client]
        places = [names.index(each.condition.value) + 0.12 * shift for each in mine]
        _errorbars(axis, places, mine, colour, style[0], _LABELS[client])
    axis.set_xticks(range(len(names)), names, rotation=25, ha="right")
    axis.set_xlabel("trace of the uplink, or precision of the backbone")


def _errorbars(axis: Any, xs: Sequence[float], mine: Sequence[Outcome], colour: str, style: str, label: str) -> None:
    shares = [each.successes / each.episodes for each in mine]
    ends = [wilson(each.successes, each.episodes) for each in mine]
    below = [max(0.0, share - low) for share, (low, _) in zip(shares, ends, strict=True)]
    above = [max(0.0, high - share) for share, (_, high) in zip(shares, ends, strict=True)]
    axis.errorbar(xs, shares, yerr=[below, above], fmt=style, color=colour, label=label, capsize=3, markersize=6)
