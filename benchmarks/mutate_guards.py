"""python -m benchmarks.mutate_guards: take each guard of the fallback machine away, one by one; some test must fail.

The package is copied, one line of the copy is changed, and the machine's tests run against it. A mutant that survives
is a guard that nothing holds in place: it is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("edge/splitvla_edge/fallback")
TESTS = (
    "test_fallback.py",
    "test_fallback_resume.py",
    "test_fallback_chunks.py",
    "test_fallback_motion.py",
    "test_fallback_local.py",
    "test_rung_choice.py",
    "test_latency.py",
    "test_fallback_known.py",
    "test_fallback_properties.py",
)
HISTORIES = "300"
_GUARD_ROW = re.compile(r"^    \((Event\.\w+), (.+), (lambda .+|\w+)\),$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: in `file`, `old` (which stands there once) becomes `new`."""

    name: str
    file: str
    old: str
    new: str


# What is a guard without being an event: conditions inside the account, the timers, the motion and the rung choice.
INNER = (
    Mutant("epoch of a reply", "account.py", "reply.epoch != self.epoch or ", ""),
    Mutant("dead sequences", "account.py", " or reply.sequence <= self._dead_sequence", ""),
    Mutant("longest deadline", "account.py", "min(now + self._settings.deadline_max_ms / 1e3, reply.deadline_at)",
           "reply.deadline_at"),
    Mutant("expiry of a call", "account.py", "not now <= self.flight_ends_at", "False"),
    Mutant("late reply", "account.py", "chunk.finished_at > flight.deadline_at", "False"),
    Mutant("finite numbers", "account.py", "if not (finite and self._well_formed", "if not (self._well_formed"),
    Mutant("shape of a chunk", "account.py", "return shaped and in_order", "return in_order"),
    Mutant("time runs backwards", "account.py", "self._newest_capture <= chunk.captured_at <= now",
           "chunk.captured_at <= now"),
    Mutant("frame from the future", "account.py", "self._newest_capture <= chunk.captured_at <= now",
           "self._newest_capture <= chunk.captured_at"),
    Mutant("clipped tokens", "account.py", "(self._accept_clipped or chunk.clipped == 0)", "True"),
    Mutant("settled frames", "account.py", "if chunk.captured_at >= self.usable_after:", "if True:"),
    Mutant("past of a chunk", "account.py", "self.since_executed(chunk.captured_at) if len(chunk.actions) > 1 else 0",
           "0"),
    Mutant("a miss ends the proof", "account.py", "        self.streak = 0\n        self.misses += 1",
           "        self.misses += 1"),
    Mutant("a call is missed once", "account.py", "if 0 < reply.sequence <= self._dead_sequence:", "if False:"),
    Mutant("one answer, one use", "account.py", "self.flight, chunk.sequence  # answered once",
           "self.flight, self._dead_sequence"),
    Mutant("each action once", "machine.py", "        self.account.cursor += 1\n", ""),
    Mutant("hold drops the chunk", "machine.py", "after now count.\"\"\"\n        self.account.drop_chunk()",
           "after now count.\"\"\""),
    Mutant("hold voids the proof", "machine.py", "if event is not Event.RELIEVED:", "if False:"),
    Mutant("settling", "machine.py", "self.account.usable_after = now + self.settings.settle_ms / 1e3",
           "self.account.usable_after = now"),
    Mutant("local motion voids frames", "machine.py", "self.account.usable_after = math.inf", "pass"),
    Mutant("frames of a robot that took no commands", "machine.py",
           "            self._forget_scene(now)\n            if self._absolute and",
           "            if self._absolute and"),
    Mutant("an arm moved by hand", "machine.py",
           "                self.last_values = None\n            return\n",
           "                pass\n            return\n"),
    Mutant("a driver's hiccup", "machine.py", "away_s >= self.settings.ready_clear_ms / 1e3", "True"),
    Mutant("an arm that sags", "machine.py", "self.last_values = self.space.set_point_at(inputs.position)", "pass"),
    Mutant("where a motion begins", "machine.py", "if self._absolute and inputs.position:", "if False:"),
    Mutant("an arm outside its limits", "../robots/action_space.py",
           "not low - slack <= value <= high + slack", "False"),
    Mutant("no local motion outside the limits", "guards.py",
           "machine.space.set_point_at(inputs.position) is None:", "False:"),
    Mutant("a commanded gripper", "machine.py", "not self._gripper_commanded and ", ""),
    Mutant("a gripper of which nothing is known", "machine.py", "self._gripper: float | None = None",
           "self._gripper: float | None = space.gripper_start"),
    Mutant("an opening that is no number", "machine.py", " and math.isfinite(inputs.gripper)", ""),
    Mutant("a latched cause", "machine.py",
           "if not (before is State.SAFE_STOP and self.state is State.SAFE_STOP):", "if True:"),
    Mutant("hold time drains", "machine.py", "self.hold_time.drain(elapsed_s)", "pass"),
    Mutant("local time drains", "machine.py", "self.local_time.drain(elapsed_s)", "pass"),
    Mutant("hold time refills slowly", "timers.py", "elapsed_s * self.refill", "elapsed_s"),
    Mutant("tail", "machine.py", "weight = min(weight, tail_weight(", "weight = max(weight, tail_weight("),
    Mutant("tail ends with the age", "machine.py",
           "min(len(chunk.actions) - self.account.cursor, int((limit_s + EPSILON_S) / self.dt_s) + 1)",
           "len(chunk.actions) - self.account.cursor"),
    Mutant("blend", "motion.py", "min(1.0, (since_resumed_s + dt_s) / blend_s)", "1.0"),
    Mutant("limits", "motion.py", "    return space.bounded(tuple(values))", "    return tuple(values)"),
    Mutant("speed of a set point", "motion.py", "begin + clip(move, -limit, limit)", "begin + move"),
    Mutant("speed cap of the local policy", "machine.py", "speed_share=settings.local_speed", "speed_share=1.0"),
    Mutant("ramp of a velocity", "machine.py", "max(0.0, 1.0 - (now - last)", "max(1.0, 1.0 - (now - last)"),
    Mutant("no ramp in an e-stop", "machine.py", " or self._estopped", ""),
    Mutant("small probes", "machine.py", "self.chooser.smallest if probing else", "self.chooser.rung if probing else"),
    Mutant("probes apart", "machine.py", "gap_s=self._gap_s if probing else 0.0", "gap_s=0.0"),
    Mutant("probes jittered", "machine.py", "(1.0 + 0.5 * self._jitter.random())", "1.0"),
    Mutant("short probes", "machine.py", "max(low_s, self._probe_deadline_s(high_s)) if probing else high_s", "high_s"),
    Mutant("no calls in a stop", "machine.py", "self.state is not State.SAFE_STOP and not forced", "not forced"),
    Mutant("forced local is local", "machine.py", "() if self.mode is Mode.FORCED_LOCAL else inputs.replies",
           "inputs.replies"),
    Mutant("camera clears by time", "machine.py", "            camera\n            and stale", "            stale"),
    Mutant("camera clears by frames", "machine.py",
           "            and stale.frames >= settings.camera_clear_frames\n", ""),
    Mutant("readiness clears by time", "machine.py",
           "            and self._unready.lasted_s(now) + EPSILON_S >= settings.ready_clear_ms / 1e3\n", ""),
    Mutant("stillness before local", "guards.py", "machine.stillness.still(now) and ", ""),
    Mutant("hold before local", "guards.py", "return waited and machine", "return machine"),
    Mutant("licence", "local_slot.py", "young and (not licence_needed or self.licensed())", "young"),
    Mutant("age of a local answer", "local_slot.py", "return young and", "return"),
    Mutant("local sees settled frames", "local_slot.py", "usable_after <= chunk.captured_at <= now",
           "chunk.captured_at <= now"),
    Mutant("finite local answer", "local_slot.py",
           "if shaped and all(math.isfinite(value) for row in chunk.actions for value in row):", "if shaped:"),
    Mutant("attribution by saving", "rungs.py", "expected > limit_ms and self._saves(self.rung, self.rung + 1)",
           "expected > limit_ms"),
    Mutant("attribution of misses", "rungs.py", " and self._to_blame(sample, limit_ms)", ""),
    Mutant("server to blame", "rungs.py", "return not server_alone and sample", "return sample"),
    Mutant("probes are not to blame", "rungs.py", " and lesson.rung < self.smallest", ""),
    Mutant("misses need an answer soon", "rungs.py", "sum(now - at <= _MISS_MEMORY_S for at in self._misses)",
           "len(self._misses)"),
    Mutant("one change a second", "rungs.py", "if now - self._changed_at >= _CHANGE_S:", "if True:"),
    Mutant("good for long enough", "rungs.py", "if now - self._good_since >= self._wait_s:", "if True:"),
    Mutant("failed upgrade", "rungs.py", "self._wait_s = min(max(_FAILED_S, _FACTOR * self._wait_s)",
           "self._wait_s = min(self._wait_s"),
    Mutant("forgiven upgrade", "rungs.py", "if now - self._upgraded_at >= self._settings.rung_trial_s",
           "if now >= self._settings.rung_trial_s"),
    Mutant("the server's queue", "latency.py", "usual_ms + self._queue_extra_ms", "usual_ms"),
    Mutant("a queue answered at once", "latency.py", "max(0.0, share * self._foretold_ms",
           "max(0.0, self._foretold_ms"),
    Mutant("a queue that is gone", "latency.py",
           "        self._foretold_ms = self._queue_extra_ms = 0.0\n        self._predicted.clear()\n", ""),
)  # fmt: skip


def guard_mutants(source: str) -> list[Mutant]:
    """Each guard of the table but the last, which always holds, never holding."""
    rows = [*_GUARD_ROW.finditer(source)][:-1]
    return [
        Mutant(row[1], "guards.py", row[0], f"    ({row[1]}, {row[2]}, lambda machine, now, inputs: False),")
        for row in rows
    ]


def survives(mutant: Mutant) -> bool:
    """Whether all tests pass although the guard is gone. Raises LookupError when there is nothing to change."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "edge"
        shutil.copytree(ROOT / "edge", copy, ignore=shutil.ignore_patterns("__pycache__"))
        file = copy / PACKAGE.relative_to("edge") / mutant.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise LookupError(f"{mutant.name}: {mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}")
        file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        paths = os.pathsep.join((str(copy), str(ROOT / "shared"), str(ROOT)))
        environment = {**os.environ, "PYTHONPATH": paths, "FALLBACK_HISTORIES": HISTORIES, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        tests = [str(ROOT / "tests" / name) for name in TESTS]
        result = subprocess.run([*command, *tests], cwd=ROOT, env=environment, capture_output=True, check=False)
    if result.returncode not in (0, 1):
        raise RuntimeError(f"{mutant.name}: pytest ended with {result.returncode}: {result.stdout.decode()[-500:]}")
    return result.returncode == 0


def main() -> int:
    """Print how each mutant fared. Exit status: 1 where one survived, 2 where no name matches."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mutate_guards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("wanted", nargs="?", default="", metavar="NAME", help="only guards whose name holds this (all)")
    wanted = parser.parse_args().wanted
    mutants = [*guard_mutants((ROOT / PACKAGE / "guards.py").read_text(encoding="utf-8")), *INNER]
    mutants = [mutant for mutant in mutants if wanted in mutant.name]
    if not mutants:
        parser.error(f"no guard's name holds {wanted!r}; they are named in {PACKAGE / 'guards.py'} and in this file")
    survivors = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for mutant, survived in zip(mutants, pool.map(survives, mutants), strict=True):
            print(f"{mutant.name}: {'SURVIVED' if survived else 'noticed'}", file=sys.stderr, flush=True)
            survivors += [mutant] if survived else []
    print(f"{len(mutants)} guards removed one by one, {len(mutants) - len(survivors)} noticed by a test")
    for mutant in survivors:
        print(f"  SURVIVED {mutant.name} ({mutant.file})")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
