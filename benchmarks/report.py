"""What every benchmark prints: one Markdown table under a line of hardware, versions, seed and n."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np


def heading(title: str, command: str, *, packages: Sequence[str], seed: int, n: int) -> str:
    """The lines above a table: title, machine, versions, and the command that makes it again."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"### {title}\n\n"
        f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}; "
        f"seed {seed}, n = {n}. Again: `{command}`\n"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def percentiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """p50, p99 and maximum of some samples."""
    p50, p99, top = np.percentile(np.asarray(samples, dtype=np.float64), (50, 99, 100))
    return float(p50), float(p99), float(top)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
