"""python -m benchmarks.fallback_overhead: what the fallback machine and its records cost a control tick."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

from benchmarks.fallback_known import alternating
from benchmarks.fallback_sim import SPACE, simulate
from benchmarks.report import heading, percentiles, table
from splitvla_edge.daemon.black_box import BlackBox
from splitvla_edge.daemon.record import LineWriter, StepRecord
from splitvla_edge.fallback import Command, FallbackSettings, TickInputs
from splitvla_edge.fallback.machine import FallbackMachine

_SECONDS = 240.0


class Collector(FallbackMachine):
    """Keeps the inputs of a simulation, so that they can be timed without it."""

    seen: list[tuple[float, TickInputs]] = []  # noqa: RUF012 - one simulation, one list

    def tick(self, now: float, inputs: TickInputs) -> Command:
        self.seen.append((now, inputs))
        return super().tick(now, inputs)


def inputs_of_a_run() -> list[tuple[float, TickInputs]]:
    """A run over a link that flaps, with chunks of eight: all states but LOCAL and SAFE_STOP occur."""
    Collector.seen = []
    simulate(alternating(100.0, 2.0), _SECONDS, chunk_length=8, machine=Collector)
    return Collector.seen


def measure(history: list[tuple[float, TickInputs]]) -> dict[str, list[float]]:
    """Microseconds of each part, tick by tick, of wall time; a line for all of them at the end.

    Unlike a robot, this leaves the threads that write no pause between two ticks: what they take is in it.
    """
    machine = FallbackMachine(FallbackSettings(), SPACE, 0.05)
    times: dict[str, list[float]] = {name: [] for name in ("machine", "hint", "black box", "step record", "all")}
    with tempfile.TemporaryDirectory() as folder:
        box, log = BlackBox(machine, Path(folder)), LineWriter(Path(folder) / "steps.jsonl", capacity=len(history))
        for now, inputs in history:
            marks = [time.perf_counter()]
            box.before(now)
            marks.append(time.perf_counter())
            command = machine.tick(now, inputs)
            marks.append(time.perf_counter())
            machine.hint()
            marks.append(time.perf_counter())
            box.after(now, inputs, command)
            marks.append(time.perf_counter())
            log.put(_record(machine, now, command).to_json)
            marks.append(time.perf_counter())
            before, tick, hint, after, line = ((end - begin) * 1e6 for begin, end in itertools.pairwise(marks))
            row = {"machine": tick, "hint": hint, "black box": before + after, "step record": line}
            for name, each in {**row, "all": sum(row.values())}.items():
                times[name].append(each)
        log.close()
    return times


def _record(machine: FallbackMachine, now: float, command: Command) -> StepRecord:
    return StepRecord(
        tick=command.tick,
        t=now,
        state=command.state.value,
        cause=command.cause,
        epoch=command.epoch,
        command=command.values,
        sequence=command.sequence,
        age_ms=command.age_s,
        horizon_ms=machine.horizon_s(now) * 1e3,
    )


def main() -> int:
    argparse.ArgumentParser(prog="python -m benchmarks.fallback_overhead", description=__doc__).parse_args()
    history = inputs_of_a_run()
    times = measure(history)
    print(
        heading(
            "The fallback machine and its records, per tick",
            "python -m benchmarks.fallback_overhead",
            packages=("splitvla",),
            seed=0,
            n=len(history),
        )
    )
    rows = []
    for name, values in times.items():
        p50, p99, top = percentiles(values)
        rows.append((name, *(f"{each:.1f} us" for each in (sum(values) / len(values), p50, p99, top))))
    print(table(("part", "mean", "p50", "p99", "max"), rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
