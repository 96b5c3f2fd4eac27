"""Recorded links: a rate (Mbit/s) or a delay (ms) in slots of equal length, repeated for ever, and readers for traces.

Formats (`read_rates` chooses by the file's name):
    mahimahi   .up, .down, .mahi   one line = a millisecond at which one packet of 1500 bytes may leave
    runs       .list               "Run N", then comma-separated Mbit/s in slots of 100 ms; NUWiNS 5G-MeMU and our own
    seconds    .csv                "second,bits" (Multipath-Wireless-Link-Traces)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

PACKET_BYTES = 1500
_MAHIMAHI_SLOT_S = 0.001
RUN_SLOT_S = 0.1
_BYTES_PER_MEGABIT = 1e6 / 8
_OUTAGE_MBPS = 0.05  # a slot below this carries nothing that a robot could use


class TraceError(ValueError):
    """A trace file that can't be read, and why."""


@dataclass(frozen=True, eq=False)
class Trace:
    """values[n] holds from n * slot_s to (n + 1) * slot_s; after the last one it starts over. Units: Mbit/s or ms."""

    slot_s: float
    values: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        if not (self.slot_s > 0 and self.values.ndim == 1 and len(self.values)):
            raise TraceError(f"a trace needs slots: {len(self.values)} values of {self.slot_s} s")
        if not (np.isfinite(self.values).all() and (self.values >= 0).all()):
            raise TraceError("a trace holds a value that is negative or not finite")

    @property
    def duration_s(self) -> float:
        return self.slot_s * len(self.values)

    def at(self, t: float) -> float:
        """The value at `t` seconds."""
        return float(self.values[int(t / self.slot_s) % len(self.values)])

    def bytes_by(self, t: float) -> float:
        """What a link of these Mbit/s has carried by `t` seconds, were it always busy."""
        loops, within = divmod(t, self.duration_s)
        slot = min(int(within / self.slot_s), len(self.values) - 1)
        inside = (within - slot * self.slot_s) * float(self.values[slot]) * _BYTES_PER_MEGABIT
        return loops * self._total + float(self._carried[slot]) + inside

    def time_of(self, carried: float) -> float:
        """The earliest t with bytes_by(t) = carried; infinity for a trace of zeros."""
        if self._total <= 0:
            return math.inf
        loops, within = divmod(carried, self._total)
        if within <= 0:  # the end of the loop before, not the first busy slot of the next
            loops, within = loops - 1, self._total
        if loops < 0:
            return 0.0
        slot = int(np.searchsorted(self._carried, within, side="left")) - 1
        rate = float(self.values[slot]) * _BYTES_PER_MEGABIT
        return loops * self.duration_s + slot * self.slot_s + (within - float(self._carried[slot])) / rate

    @cached_property
    def _carried(self) -> npt.NDArray[np.float64]:
        """Bytes carried by the beginning of each slot, and by the end of the last."""
        each = self.values * (self.slot_s * _BYTES_PER_MEGABIT)
        return np.concatenate(([0.0], np.cumsum(each)))

    @cached_property
    def _total(self) -> float:
        return float(self._carried[-1])

    def slots_of(self, slot_s: float) -> npt.NDArray[np.float64]:
        """Mean values in coarser slots; what is left over at the end is dropped."""
        each = max(1, round(slot_s / self.slot_s))
        whole = len(self.values) // each * each
        if not whole:
            return np.array([self.values.mean()], dtype=np.float64)
        coarse: npt.NDArray[np.float64] = self.values[:whole].reshape(-1, each).mean(axis=1)
        return coarse


@dataclass(frozen=True, slots=True)
class RateStatistics:
    """In slots of 100 ms (or the trace's own, where longer), Mbit/s; outages are slots below 0.05 Mbit/s."""

    mean: float
    p5: float
    p50: float
    p95: float
    longest_outage_s: float
    outage_share: float


def statistics(trace: Trace) -> RateStatistics:
    slot_s = max(RUN_SLOT_S, trace.slot_s)
    rates = trace.slots_of(slot_s)
    out = rates < _OUTAGE_MBPS
    p5, p50, p95 = (float(value) for value in np.percentile(rates, (5, 50, 95)))
    return RateStatistics(float(rates.mean()), p5, p50, p95, _longest(out) * slot_s, float(out.mean()))


def _longest(flags: npt.NDArray[np.bool_]) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def read_rates(path: Path) -> Trace:
    """The Mbit/s of a trace file, all its runs joined. Raises TraceError."""
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise TraceError(f"{path}: unknown kind of trace; expected one of {', '.join(sorted(_READERS))}")
    try:
        return reader(path)
    except OSError as error:
        raise TraceError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise TraceError(f"{path} is no such trace: {error}") from error


def read_mahimahi(path: Path) -> Trace:
    stamps = np.array([int(line) for line in path.read_text(encoding="ascii").split()], dtype=np.int64)
    if not len(stamps) or stamps[0] < 0 or (np.diff(stamps) < 0).any() or stamps[-1] == 0:
        raise TraceError("timestamps must be there, must not fall, and the last must be above 0")
    # The last timestamp is the trace's length: what may leave then leaves at the end of the last slot.
    packets = np.bincount(np.minimum(stamps, stamps[-1] - 1), minlength=int(stamps[-1])).astype(np.float64)
    return Trace(_MAHIMAHI_SLOT_S, packets * (PACKET_BYTES / _BYTES_PER_MEGABIT / _MAHIMAHI_SLOT_S))


def read_runs(path: Path) -> list[Trace]:
    """One trace a run. A run of several lists alternates times and rates: its first rates count, without the gaps."""
    runs: list[list[str]] = []
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("Run"):
            runs.append([])
        elif line and not line.startswith("#"):
            if not runs:
                raise TraceError("numbers before the first run")
            runs[-1].append(line)
    return [Trace(RUN_SLOT_S, _numbers(lists[min(1, len(lists) - 1)])) for lists in runs if lists]


def read_delays(path: Path, slot_s: float) -> Trace:
    """Round trips in ms as a .list of runs gives them, all runs joined, one each slot_s seconds."""
    return Trace(slot_s, joined(read_runs(path)).values)


def _numbers(line: str) -> npt.NDArray[np.float64]:
    return np.array([float(word) for word in line.split(",") if word], dtype=np.float64)


def _read_joined_runs(path: Path) -> Trace:
    return joined(read_runs(path))


def _read_seconds(path: Path) -> Trace:
    rows = [line.split(",") for line in path.read_text(encoding="ascii").split()]
    return Trace(1.0, np.array([float(bits) / 1e6 for _, bits in rows], dtype=np.float64))


_READERS = {
    ".up": read_mahimahi,
    ".down": read_mahimahi,
    ".mahi": read_mahimahi,
    ".list": _read_joined_runs,
    ".csv": _read_seconds,
}


def joined(traces: Sequence[Trace]) -> Trace:
    """One after the other; all must have slots of one length."""
    lengths = {trace.slot_s for trace in traces}
    if len(lengths) != 1:
        raise TraceError(f"{len(traces)} traces with slots of {sorted(lengths)} s can't be joined")
    return Trace(lengths.pop(), np.concatenate([trace.values for trace in traces]))


def run_lines(traces: Sequence[Trace], about: str) -> Iterator[str]:
    """A .list file of these traces, which must have slots of 100 ms."""
    yield f"# {about}"
    for number, trace in enumerate(traces, 1):
        yield f"Run {number}"
        yield ",".join(f"{value:.3f}" for value in trace.values)
