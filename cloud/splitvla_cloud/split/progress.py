"""How `split` tells whoever watches how far it is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

_TICK_S = 0.5


class Progress(Protocol):
    """Called often, by one thread at a time; `done` reaches `total` once for each stage.

    Stages in order: "check", "encoder graph", "encoder weights" (of large models), "backbone", "golden probe" and
    "manifest". All count bytes but "encoder graph", one step that nobody can see into: its calls until then only say
    that it is alive.
    """

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def silent(stage: str, done: int, total: int) -> None:
    """The Progress of someone who does not watch."""


def counter(report: Progress, stage: str, total: int) -> Callable[[int], None]:
    """A function that is told what was done since its last call."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(stage, done, total)

    return advance


@contextlib.contextmanager
def ticking(report: Progress, stage: str) -> Iterator[None]:
    """Report `stage` twice a second while the block runs; the block itself must not report."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(_TICK_S):
            report(stage, 0, 1)

    report(stage, 0, 1)
    thread = threading.Thread(target=tick, name="split-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    report(stage, 1, 1)
