"""How `split` tells whoever watches how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called often, from the thread that splits; `done` reaches `total` once for each stage.

    Stages in order: "check" and "backbone" count bytes, "encoder" and "manifest" count steps.
    """

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def silent(stage: str, done: int, total: int) -> None:
    """The Progress of someone who does not watch."""
