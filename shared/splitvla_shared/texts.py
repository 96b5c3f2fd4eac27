"""Somebody else's words, made fit for a log."""

from __future__ import annotations

_MAX_CHARS = 300


def one_line(text: str | None, limit: int = _MAX_CHARS) -> str:
    """The text as one bounded line of printable characters; empty for None."""
    line = " ".join((text or "").split())[:limit]
    return "".join(char if char.isprintable() else "?" for char in line)
