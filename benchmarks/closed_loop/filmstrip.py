"""One episode as a picture: a strip (PNG) or a film (GIF) with the source of every action drawn on its frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageColor, ImageDraw, ImageFont

from benchmarks.closed_loop.rollout import Rollout
from benchmarks.timeline import STATE_COLOURS
from splitvla_edge.daemon.episodes import Outcome, read_episodes
from splitvla_edge.daemon.record import STEPS_FILE, read_steps
from splitvla_edge.robots.simulator.robot import PICTURES
from splitvla_shared.nouns import Image

_SIDE = 224
_BAND = 26
_GAP = 6
_MOVES, _DONE = STATE_COLOURS["NOMINAL"], "#0072B2"


@dataclass(frozen=True, slots=True)
class Shot:
    """One frame, what the robot did on it, and the colour that says so."""

    image: Image
    text: str
    colour: str


def shots_of_rollout(rollout: Rollout) -> list[Shot]:
    shots = [Shot(step.image, f"{index + 1}  {step.source}", _MOVES) for index, step in enumerate(rollout.steps)]
    return [*shots, Shot(rollout.last, "done" if rollout.success else "not done", _DONE)]


def shots_of_run(run_dir: Path) -> list[Shot]:
    """Of a run of the daemon that recorded its pictures: one a tick, from the first action to the last one."""
    records = read_steps(run_dir / STEPS_FILE)
    moved = [index for index, record in enumerate(records) if record.state == "NOMINAL"]
    shots = []
    for record in records[moved[0] : moved[-1] + 1] if moved else []:
        path = run_dir / PICTURES / f"{record.tick:06}.jpg"
        if path.is_file():
            said = "cloud" if record.state == "NOMINAL" else record.state
            colour = STATE_COLOURS.get(record.state, "#CC79A7")
            shots.append(Shot(_read(path), f"{record.t:.1f} s  {said}", colour))
    episodes = read_episodes(run_dir)
    if shots and episodes and episodes[-1].outcome is Outcome.SUCCESS:
        shots.append(dataclasses.replace(shots[-1], text="done", colour=_DONE))
    return shots


def _read(path: Path) -> Image:
    with PillowImage.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def spread(shots: Sequence[Shot], count: int) -> list[Shot]:
    """`count` of them, evenly spaced, the first and the last included."""
    if len(shots) <= count:
        return list(shots)
    return [shots[round(index * (len(shots) - 1) / (count - 1))] for index in range(count)]


def write_strip(shots: Sequence[Shot], path: Path, count: int = 8) -> None:
    """A PNG of at most `count` frames beside each other."""
    frames = [PillowImage.fromarray(drawn(shot)) for shot in spread(shots, count)]
    width = len(frames) * (_SIDE + _GAP) - _GAP
    strip = PillowImage.new("RGB", (width, _SIDE + _BAND), "white")
    for index, frame in enumerate(frames):
        strip.paste(frame, (index * (_SIDE + _GAP), 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    strip.save(path, optimize=True)


def write_film(shots: Sequence[Shot], path: Path, fps: float = 5.0) -> None:
    """A GIF of all frames; the last one stays for two seconds."""
    frames = [PillowImage.fromarray(drawn(shot)).quantize(64) for shot in shots]
    durations = [round(1000 / fps)] * (len(frames) - 1) + [2000]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)


def drawn(shot: Shot) -> Image:
    """The frame with its text above it: uint8 (height, width, 3)."""
    canvas = PillowImage.new("RGB", (_SIDE, _SIDE + _BAND), shot.colour)
    canvas.paste(PillowImage.fromarray(shot.image).resize((_SIDE, _SIDE)), (0, _BAND))
    dark = sum(ImageColor.getrgb(shot.colour)[:3]) < 380
    pen = ImageDraw.Draw(canvas)
    pen.text((7, 5), shot.text, fill="white" if dark else "black", font=ImageFont.load_default(15))
    return np.asarray(canvas)
