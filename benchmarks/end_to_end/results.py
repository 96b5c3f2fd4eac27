"""What a section of the benchmark gives: a Markdown table for people, and the numbers behind it for `--compare`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np

from benchmarks import report
from splitvla_shared.errors import ConfigError

RESULTS_FILE = "results.json"
_FORMAT = "splitvla-latency/1"


@dataclass(frozen=True, slots=True)
class Summary:
    """Percentiles of n samples, and the standard error of their median: what a repetition would differ by anyway."""

    n: int
    p50: float
    p90: float
    p99: float
    max: float
    noise: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Samples: at least one. The error comes from the middle two thirds, so that one outlier does not make it."""
        array = np.asarray(samples, dtype=np.float64)
        low, p50, high, p90, p99 = np.percentile(array, (16, 50, 84, 90, 99))
        noise = 1.2533 * (high - low) / 2 / math.sqrt(len(array))
        return cls(len(array), float(p50), float(p90), float(p99), float(array.max()), float(noise))

    def cells(self, digits: int = 1) -> list[str]:
        return [f"{value:,.{digits}f}" for value in (self.p50, self.p90, self.p99, self.max)]

    @classmethod
    def cells_of(cls, samples: Sequence[float], digits: int = 1) -> list[str]:
        """p50, p90, p99 and max; dashes without any sample."""
        return cls.of(samples).cells(digits) if samples else ["-"] * 4


@dataclass(frozen=True, slots=True)
class Section:
    """One table. metrics: milliseconds (or what the name says) by name, where less is better. text: what it means."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n: int
    metrics: Mapping[str, Summary] = field(default_factory=dict)
    text: str = ""
    packages: tuple[str, ...] = ("grpcio", "onnxruntime", "torch")

    def markdown(self, command: str, seed: int) -> str:
        here = tuple(name for name in self.packages if _installed(name))  # a robot has no torch
        title = report.heading(self.title, command, packages=here, seed=seed, n=self.n)
        text = f"\n{self.text}\n" if self.text else ""
        return title + "\n" + report.table(self.header, self.rows) + text


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run as it is compared: its command, how fast the machine was, and all metrics."""

    command: str
    yardstick_ms: float
    metrics: Mapping[str, Summary]


def write_section(section: Section, folder: Path, command: str, seed: int) -> None:
    """NAME.md and NAME.json in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{section.name}.md").write_text(section.markdown(command, seed), encoding="utf-8")
    _write_json(folder / f"{section.name}.json", dataclasses.asdict(section) | {"command": command, "seed": seed})


def write_run(sections: Iterable[Section], folder: Path, command: str, yardstick_ms: float) -> Recorded:
    """results.json in `folder`: what a later run's `--compare` reads."""
    metrics = {f"{section.name}/{name}": value for section in sections for name, value in section.metrics.items()}
    recorded = Recorded(command, yardstick_ms, metrics)
    _write_json(folder / RESULTS_FILE, {"format": _FORMAT, **dataclasses.asdict(recorded)})
    return recorded


def read_run(path: Path) -> Recorded:
    """Read results.json, or the one in a folder. Raises ConfigError."""
    file = path / RESULTS_FILE if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise ConfigError(f"{file} has format {data['format']!r}, this version reads {_FORMAT!r}; measure again")
        metrics = {name: Summary(**value) for name, value in data["metrics"].items()}
        return Recorded(data["command"], float(data["yardstick_ms"]), metrics)
    except OSError as error:
        raise ConfigError(f"{file} can't be read: {error.strerror}; name a results.json of an earlier run") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} is no results.json of this benchmark ({error})") from error


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
