"""The user's frames as clips: folders of images, videos, and the recording that a run played."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitvla_edge.daemon.record import RUN_FILE
from splitvla_edge.robots.replay import Source, open_source
from splitvla_shared.errors import ConfigError, ObservationError, RobotError
from splitvla_shared.nouns import Image
from splitvla_shared.preprocess.images import check_image

# Frames in a row that are taken together: enough to learn how a frame follows from the one before.
_RUN = 8


@dataclass(frozen=True, slots=True)
class Selection:
    """Which frames of a source: stretches of at most 8 in a row, `every` frames apart, spread over its length."""

    source: Path
    stretches: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        return sum(len(stretch) for stretch in self.stretches)


def find_sources(paths: Sequence[Path]) -> list[Path]:
    """What can be played below `paths`: each a folder of images, a video, a run's folder, or a folder of these.

    Raises ConfigError naming the first path that is none of them.
    """
    return [found for path in paths for found in _sources(path)]


def select(sources: Sequence[Path], hz: float, most: int) -> list[Selection]:
    """At most `most` frames, `hz` a second, as the robot will send them, of all sources or of some evenly spaced.

    Raises ConfigError for a source that can't be opened.
    """
    taken = min(len(sources), max(1, most // _RUN))
    share = most // taken
    selections = []
    for index in np.linspace(0, len(sources) - 1, taken).round().astype(int):
        path = sources[index]
        opened = _open(path)
        opened.close()
        every = max(1, round(opened.fps / hz))
        selections.append(Selection(path, spread(opened.count, every, share)))
    return selections


def spread(count: int, every: int, most: int) -> tuple[tuple[int, ...], ...]:
    """Stretches of indices below `count`, at most `most` of them in all, evenly over the whole length."""
    kept = range(0, count, every)
    if len(kept) <= most:
        starts = list(range(0, len(kept), _RUN))
    else:
        pieces = max(1, most // _RUN)
        starts = [int(start) for start in np.linspace(0, len(kept) - _RUN, pieces).round()]
    return tuple(tuple(kept[start : start + _RUN]) for start in starts)


def read_clips(
    selections: Sequence[Selection], square: Callable[[Image], Image], advance: Callable[[], None]
) -> Iterator[list[Image]]:
    """Clips of square images, none of which repeats the one before; `advance` after each frame.

    Raises ObservationError or RobotError naming what can't be read.
    """
    for selection in selections:
        source = _open(selection.source)
        try:
            for stretch in selection.stretches:
                clip = _read(source, stretch, square, advance, selection.source)
                if clip:
                    yield clip
        finally:
            source.close()


def _read(
    source: Source, stretch: Sequence[int], square: Callable[[Image], Image], advance: Callable[[], None], path: Path
) -> list[Image]:
    clip: list[Image] = []
    for index in stretch:
        try:
            image = square(check_image(source.read(index)))
        except RobotError as error:
            if index == 0:
                raise ObservationError(f"{path} can't be decoded: {error}") from error
            break  # a container may promise more frames than it holds
        if not clip or (image != clip[-1]).any():
            clip.append(image)
        advance()
    return clip


def _sources(path: Path) -> list[Path]:
    if (path / RUN_FILE).is_file():
        return [_played(path)]
    if not path.is_dir():
        return [path]
    try:
        _open(path).close()
        return [path]
    except ConfigError:
        below = sorted(each for each in path.iterdir() if not each.name.startswith("."))
    found = [each for child in below if child.is_dir() or _plays(child) for each in _sources(child)]
    if not found:
        raise ConfigError(f"--frames {path} holds no images, videos or folders of images")
    return found


def _played(run_dir: Path) -> Path:
    """What a run played; a run's own folder holds commands and times, no pictures."""
    try:
        frames = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))["settings"]["replay"]["frames"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--frames {run_dir / RUN_FILE} can't be read: {error!r}") from error
    if not frames:
        raise ConfigError(
            f"--frames {run_dir} is a run's folder, which holds no pictures; record the camera as images or a video"
        )
    return Path(frames)


def _plays(path: Path) -> bool:
    return path.suffix.lower() in (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")


def _open(path: Path) -> Source:
    return open_source(path, "--frames")
