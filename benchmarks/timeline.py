"""A run as one picture: what the camera saw, where each answer's time went, what the robot was told, and the bytes."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no screen is needed, and none is looked for

import matplotlib.pyplot as plt
from matplotlib.patches import Patch

from splitvla_edge.daemon.record import STEPS_FILE, StepRecord, read_steps, summarise
from splitvla_shared.nouns import Image

# Stages in the order of a frame's way, joined to what a person asks about, with a colour-blind-safe palette.
_STAGES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("preprocess + encode (robot)", ("preprocess_ms", "encode_ms"), "#0072B2"),
    ("compress + wire", ("compress_ms", "network_ms", "decode_payload_ms"), "#E69F00"),
    ("queue (server)", ("queue_ms",), "#999999"),
    ("prefill (server)", ("prefill_ms",), "#009E73"),
    ("decode (server)", ("decode_ms",), "#56B4E9"),
)
STATE_COLOURS = {
    "INIT": "#BBBBBB",
    "NOMINAL": "#009E73",
    "DEGRADED": "#56B4E9",
    "COAST": "#0072B2",
    "WAIT": "#F0E442",
    "HOLD": "#E69F00",
    "LOCAL": "#CC79A7",
    "SAFE_STOP": "#D55E00",
}
_MISS_COLOUR = "#D55E00"


@dataclass(frozen=True, slots=True)
class Marker:
    """Something that was done to the run from outside, at `t` seconds of the run."""

    t: float
    text: str


def draw(
    records: Sequence[StepRecord],
    path: Path,
    *,
    title: str,
    markers: Sequence[Marker] = (),
    frames: Sequence[Image] = (),
) -> None:
    """Write the picture. `frames` are shown above it, evenly spaced."""
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    heights = [1.7 if frames else 0.01, 3.2, 0.8, 1.2]
    figure, axes = plt.subplots(4, 1, figsize=(11, 8.2), height_ratios=heights, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    end = max((record.t for record in records), default=1.0)
    _draw_frames(axes[0], frames)
    _draw_latency(axes[1], records)
    _draw_states(axes[2], records, end)
    _draw_bytes(axes[3], records)
    for axis in axes[1:]:
        axis.set_xlim(0, end)
        for marker in markers:
            axis.axvline(marker.t, color="black", linewidth=1, linestyle=(0, (4, 3)))
    for line, marker in enumerate(markers):  # each on a line of its own: they may be close together
        axes[1].annotate(
            marker.text, (marker.t, 1.0), xycoords=("data", "axes fraction"), xytext=(4, -2 - 12 * line), fontsize=9,
            textcoords="offset points", va="top",
        )  # fmt: skip
    axes[3].set_xlabel("seconds since the run began")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_frames(axis: Any, frames: Sequence[Image]) -> None:
    axis.axis("off")
    for index, frame in enumerate(frames):
        inset = axis.inset_axes((index / len(frames), 0.0, 0.96 / len(frames), 1.0))
        inset.imshow(frame, aspect="auto")
        inset.axis("off")


def _draw_latency(axis: Any, records: Sequence[StepRecord]) -> None:
    answers = [(record.t, record.stages) for record in records if record.stages is not None]
    times = [t for t, _ in answers]
    width = 0.7 * min((b - a for a, b in itertools.pairwise(times)), default=0.1)
    bottom = [0.0] * len(answers)
    for label, names, colour in _STAGES:
        values = [sum(getattr(stages, name) for name in names) for _, stages in answers]
        axis.bar(times, values, width=width, bottom=bottom, color=colour, label=label)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    misses = [record.t for record in records if record.miss]
    if misses:
        axis.plot(misses, [0.0] * len(misses), "x", color=_MISS_COLOUR, clip_on=False, label="call without an answer")
    axis.set_ylabel("ms from frame\nto action")
    axis.set_ylim(0, max([*bottom, 1.0]) * 1.25)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=6, frameon=False, fontsize=8.5, handlelength=1)


def _draw_states(axis: Any, records: Sequence[StepRecord], end: float) -> None:
    for record, until in zip(records, [*(later.t for later in records[1:]), end], strict=True):
        axis.axvspan(record.t, until, color=STATE_COLOURS.get(record.state, "#CC79A7"), linewidth=0)
    seen = [state for state in STATE_COLOURS if any(record.state == state for record in records)]
    axis.legend(
        handles=[Patch(color=STATE_COLOURS[state], label=state) for state in seen],
        loc="upper center", bbox_to_anchor=(0.5, 1.5), ncols=5, frameon=False, fontsize=8.5, handlelength=1,
    )  # fmt: skip
    axis.set_yticks([])
    axis.set_ylabel("the robot\nis told", rotation=0, ha="right", va="center")


def _draw_bytes(axis: Any, records: Sequence[StepRecord]) -> None:
    sent = [(record.t, record.wire_bytes / 1000) for record in records if record.wire_bytes is not None]
    if sent:
        axis.vlines([t for t, _ in sent], 0, [size for _, size in sent], color="#0072B2", linewidth=2)
        axis.set_ylim(0, max(size for _, size in sent) * 1.3)
    axis.set_ylabel("kB a frame")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--out", type=Path, help="the PNG (RUN_DIR/timeline.png)")
    arguments = parser.parse_args()
    records = read_steps(arguments.run_dir / STEPS_FILE)
    out = arguments.out or arguments.run_dir / "timeline.png"
    draw(records, out, title=summarise(records).line().split(";")[0])
    print(out)


if __name__ == "__main__":
    main()
