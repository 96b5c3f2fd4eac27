"""python -m benchmarks.fallback_known: the fallback machine on simulated time, against results that are known."""

from __future__ import annotations

import argparse
import random
from statistics import quantiles

from benchmarks.fallback_sim import (
    Link,
    Way,
    off_remote,
    recovery_ticks,
    rung_changes,
    simulate,
)
from benchmarks.report import heading, table
from splitvla_edge.fallback import FallbackSettings

SEED = 7
_BASE_MS = 30.0


def bursts(extra_ms: float = 300.0, every_s: float = 10.0, length_s: float = 1.0) -> Link:
    """Every ten seconds, for one, everything takes 300 ms longer."""
    return lambda t, size: Way(_BASE_MS + (extra_ms if t % every_s >= every_s - length_s else 0.0))


def partition(begins_s: float, ends_s: float) -> Link:
    """Nothing comes back of a call that overlaps the partition."""

    def link(t: float, size: int) -> Way:
        lost = begins_s - _BASE_MS / 1e3 <= t < ends_s
        return Way(float("inf") if lost else _BASE_MS)

    return link


def alternating(good_mbps: float, bad_mbps: float, every_s: float = 3.0) -> Link:
    """The bandwidth changes every three seconds."""

    def link(t: float, size: int) -> Way:
        mbps = good_mbps if int(t / every_s) % 2 == 0 else bad_mbps
        return Way(10.0 + size * 8e-3 / mbps)

    return link


def off_remote_in_bursts(chunk_length: int) -> float:
    return off_remote(simulate(bursts(), 120.0, chunk_length=chunk_length)[200:])


def recoveries(chunk_length: int, n: int = 200) -> list[float]:
    """Ticks from the link's return to motion, after partitions of 0.3 to 10 s at random moments."""
    random_ = random.Random(SEED)
    settings = FallbackSettings(hold_to_stop_s=30.0)
    ticks = []
    for number in range(n):
        begins = 3.0 + random_.random()
        ends = begins + random_.uniform(0.3, 10.0)
        moments = simulate(
            partition(begins, ends), ends + 3.0, chunk_length=chunk_length, settings=settings, seed=number
        )
        ticks.append(recovery_ticks(moments, ends))
    return ticks


def main() -> int:
    """Print the table."""
    argparse.ArgumentParser(prog="python -m benchmarks.fallback_known", description=__doc__).parse_args()
    print(
        heading(
            "The fallback machine on simulated time",
            "python -m benchmarks.fallback_known",
            packages=("splitvla",),
            seed=SEED,
            n=200,
        )
    )
    rows = [
        (f"300 ms bursts, 1 s in 10, K={k}: off remote control", f"{off_remote_in_bursts(k):.1%}", known)
        for k, known in ((8, "about 9.5 %"), (16, "4.5 %"), (24, "0 %"))
    ]
    for k in (1, 8):
        ticks = recoveries(k)
        p95 = quantiles(ticks, n=20)[18]
        text = f"{quantiles(ticks, n=2)[0]:.1f} / {p95:.1f} / {max(ticks):.1f} ticks"
        rows.append((f"recovery after a partition of 0.3-10 s, K={k}: p50 / p95 / max", text, "9 / 14"))
    for good, bad in ((200.0, 60.0), (100.0, 20.0), (100.0, 2.0), (20.0, 2.0)):
        changes = rung_changes(simulate(alternating(good, bad), 240.0, chunk_length=8))
        rows.append((f"{good:g} and {bad:g} Mbit/s alternating every 3 s: rung changes in 240 s", str(changes), "3"))
    print(table(("case", "measured", "known"), rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
