"""python -m benchmarks.faults: every fault on real processes, one table."""

from __future__ import annotations

import argparse
import random
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.faults.catalogue import FAULTS, Expect, Fault
from benchmarks.faults.driver import Received
from benchmarks.faults.measure import STILL, Account, Injection, Outcome, account, outcome
from benchmarks.faults.rig import PERIOD_S, Rig, rigged
from benchmarks.faults.wall_clock import NoCompiler
from benchmarks.processes import ProcessLost
from benchmarks.tiny_checkpoint import write_tiny_checkpoint
from splitvla_cloud.split import split
from splitvla_edge.fallback import FallbackSettings

_STEADY_TICKS = 10
_SHOWS_S = 0.6
_RESETS_S = 0.3  # from the end of a fault to the operator's reset, where there is a need for one
_ENDS_S = 0.5  # looked at after a fault that ends the run


@dataclass(frozen=True, slots=True)
class Result:
    """One fault's injections, and the account of the whole run."""

    fault: Fault
    outcomes: tuple[Outcome, ...]
    account: Account
    verdict: str


def run_fault(fault: Fault, bundles: Path, other: Path, folder: Path, times: int, seed: int) -> Result:
    """Do one fault so many times to one rig. Raises ProcessLost when the rig does not come up."""
    draw = random.Random(seed)
    injections = []
    with rigged(bundles, other, folder, fault.setup, seed) as rig:
        for number in range(fault.times or times):
            if number:  # hold time adds up by design; each injection begins with all of it
                rig.daemon.send_signal(signal.SIGUSR1)
                rig.wait_for(lambda each: each.motion, fault.settle_s)
            time.sleep(fault.steady_s + draw.random() * 0.5)
            injections.append(_inject(rig, fault))
        received = list(rig.commands())
        stops = list(rig.driver.watchdog_stops)
    outcomes = tuple(outcome(received, injection, stops) for injection in injections)
    settings = FallbackSettings()
    counted = account(received, rig.records(), settings.max_age_s(PERIOD_S, 1) * 1e3)
    return Result(fault, outcomes, counted, _verdict(fault, outcomes, counted))


def _inject(rig: Rig, fault: Fault) -> Injection:
    """Do it, undo it, and watch until the robot has moved again, or for as long as it may take."""
    started = time.monotonic()
    fault.do(rig)
    time.sleep(max(0.0, fault.lasts_s - (time.monotonic() - started)))
    fault.undo(rig)
    ended = time.monotonic()
    if fault.expect is Expect.LATCH or (fault.expect is Expect.RIDE and rig.commands()[-1].state == "SAFE_STOP"):
        time.sleep(_RESETS_S)
        rig.daemon.send_signal(signal.SIGUSR1)
        ended = time.monotonic()
    if fault.expect in (Expect.DEAD, Expect.STOP):
        time.sleep(_ENDS_S if fault.expect is Expect.DEAD else fault.settle_s)
        if fault.expect is Expect.STOP:
            rig.daemon.send_signal(signal.SIGUSR1)  # no reset may help
            time.sleep(_ENDS_S * 2)
    else:
        _wait_until_it_moves(rig, fault)
    return Injection(started, ended, time.monotonic())


def _wait_until_it_moves(rig: Rig, fault: Fault) -> None:
    """Until it has not held for some ticks in a row; a fault without length is given time to show first."""
    time.sleep(_SHOWS_S if fault.lasts_s == 0 else 0.0)
    steady = 0

    def count(each: Received) -> bool:
        nonlocal steady
        steady = 0 if each.state in STILL else steady + 1
        return steady >= _STEADY_TICKS

    rig.wait_for(count, fault.settle_s)


def _verdict(fault: Fault, outcomes: Sequence[Outcome], counted: Account) -> str:
    """ "as expected", or what was not."""
    wrong = list(counted.violations[:2])
    for each in outcomes:
        held, moves = each.hold_ms is not None, each.resume_ticks is not None
        if fault.expect is not Expect.RIDE and not held:
            wrong.append("never held")
        if fault.expect in (Expect.RIDE, Expect.HOLD, Expect.LATCH) and not moves:
            wrong.append("never moved again")
        if fault.expect in (Expect.STOP, Expect.DEAD) and moves:
            wrong.append("moved again")
        if fault.expect is Expect.HOLD and each.latched:
            wrong.append("safe stop")
        if fault.expect in (Expect.LATCH, Expect.STOP) and not each.latched:
            wrong.append("no safe stop")
    if fault.rung_changes is not None and counted.rung_changes > fault.rung_changes:
        wrong.append(f"{counted.rung_changes} changes of the payload")
    latched = sum(each.latched for each in outcomes)
    stops = f"; safe stop {latched} of {len(outcomes)}" if latched and fault.expect is Expect.RIDE else ""
    changes = f"; {counted.rung_changes} changes of the payload" if fault.rung_changes is not None else ""
    return ("not as expected: " + "; ".join(dict.fromkeys(wrong))) if wrong else fault.expect.value + stops + changes


def rows(result: Result) -> tuple[str, ...]:
    """One row of the table."""
    fault, counted = result.fault, result.account
    holds = [each.hold_ms for each in result.outcomes if each.hold_ms is not None]
    resumes = [float(each.resume_ticks) for each in result.outcomes if each.resume_ticks and each.hold_ms is not None]
    return (
        fault.name,
        str(len(result.outcomes)),
        str(len(holds)),
        _spread(holds),
        _spread(resumes),
        f"{counted.commands:,}",
        f"{counted.oldest_ms:.0f}",
        f"{counted.lateness_p99_ms:.1f} / {counted.lateness_max_ms:.0f}",
        result.verdict,
    )


HEADER = (
    "fault", "n", "held", "until HOLD ms: p50 / p95 / max", "ticks to motion after its end: p50 / p95 / max",
    "commands", "oldest action ms", "lateness ms: p99 / max", "the robot",
)  # fmt: skip


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return f"{statistics.median(ordered):.0f} / {p95:.0f} / {ordered[-1]:.0f}"


def results(faults: Sequence[Fault], times: int, seed: int, folder: Path) -> Iterator[Result]:
    """Run each fault on a rig of its own; what can't be run is said on standard error and left out."""
    for name, chosen in (("model", seed), ("other", seed + 1)):
        write_tiny_checkpoint(folder / f"checkpoint-{name}", seed=chosen)
        split(folder / f"checkpoint-{name}", folder / f"bundles-{name}")
    for number, fault in enumerate(faults):
        result = _run_or_say(fault, folder, folder / f"run-{number}", times, seed + number)
        if result is not None:
            yield result


def _run_or_say(fault: Fault, folder: Path, where: Path, times: int, seed: int) -> Result | None:
    try:
        return run_fault(fault, folder / "bundles-model", folder / "bundles-other", where, times, seed)
    except (ProcessLost, NoCompiler) as error:
        print(f"{fault.name}: {error}", file=sys.stderr)
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3, help="how often each fault is done (3)")
    parser.add_argument("--only", metavar="TEXT", action="append", default=[], help="faults whose name holds this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs here")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an end that ends the processes too
    chosen = [fault for fault in FAULTS if not arguments.only or any(text in fault.name for text in arguments.only)]
    with tempfile.TemporaryDirectory() as scratch:
        done = []
        for result in results(chosen, arguments.times, arguments.seed, arguments.keep or Path(scratch)):
            done.append(result)
            print("| " + " | ".join(rows(result)) + " |", file=sys.stderr, flush=True)
    only = "".join(f" --only {shlex.quote(text)}" for text in arguments.only)
    command = f"python -m benchmarks.faults --times {arguments.times} --seed {arguments.seed}{only}"
    title = f"Faults on real processes, one action a reply, ticks of {PERIOD_S * 1e3:.0f} ms"
    print(report.heading(title, command, packages=("grpcio", "onnxruntime"), seed=arguments.seed, n=len(done)))
    print(report.table(HEADER, map(rows, done)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
