"""What every benchmark prints: one Markdown table under a line of hardware, versions, seed and n."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

_Z95 = 1.959964


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


def wilson(successes: int, n: int, z: float = _Z95) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927), 95 % unless told otherwise; (0, 1) when nothing was tried."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    share, square = successes / n, z * z
    centre = share + square / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    # The ends of a certain outcome are exact; rounding must not put them outside.
    low = 0.0 if successes == 0 else (centre - spread) / (1 + square / n)
    high = 1.0 if successes == n else (centre + spread) / (1 + square / n)
    return low, high


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
