"""The short faults on real processes; `python -m benchmarks.faults` does all of them and takes the times.

One rig for all of them: a scripted server behind the link, a camera over HTTP, the daemon with its two
processes, and a robot that keeps its own account of the commands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.faults.catalogue import FAULTS, Expect
from benchmarks.faults.driver import Received
from benchmarks.faults.measure import STILL, account
from benchmarks.faults.rig import Rig, Setup, rigged

_PATIENCE_S = 20.0
_MAX_AGE_MS = 300.0  # of the picture behind a command; the daemon's default
# A shared machine may stall for longer than three ticks; what a late tick does is test_control's matter.
_PATIENT = Setup(
    server="scripted", options=("--set", "fallback.overrun_ticks=60", "--set", "fallback.hold_to_stop_s=60")
)


@dataclass(frozen=True, slots=True)
class Before:
    """How the rig stood when a fault was done to it: what came later is of the fault."""

    records: int
    accepted: int
    perception: int

    @classmethod
    def of(cls, rig: Rig) -> Before:
        return cls(len(rig.records()), rig.link.counters().accepted, rig.perception())


Shows = Callable[[Rig, Before], bool]


def _says(text: str) -> Shows:
    return lambda rig, before: any(text in record.detail for record in rig.records()[before.records :])


def _link_broken(rig: Rig, before: Before) -> bool:
    missed = any(record.miss for record in rig.records()[before.records :])
    return missed or rig.link.counters().accepted > before.accepted


def _log_has_gaps(rig: Rig, before: Before) -> bool:
    return "the log has gaps" in (rig.run_dir.parent / "edge.log").read_text()


def _perception_gone(rig: Rig, before: Before) -> bool:
    return not Path(f"/proc/{before.perception}").exists()


# By what each fault is seen to have come about, beside what it makes the robot do.
_SHORT: dict[str, Shows | None] = {
    "partition, 0.3 s": None,
    "connections reset": _link_broken,
    "connections half-open": _link_broken,
    "a bit flipped on the way up": _link_broken,
    "a bit flipped on the way down": _link_broken,
    "stream cut in the middle of a reply": _link_broken,
    "reply truncated": None,
    "reply of an older frame": None,
    "reply not finite": None,
    "camera black": _says("sees nothing"),
    "camera stuck on one picture": _says("is frozen"),
    "camera unplugged": _says("gives no frames"),
    "disk full for the log": _log_has_gaps,
    "perception killed": _perception_gone,
}


@contextlib.contextmanager
def _running(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rigged(bundles, bundles, tmp_path_factory.mktemp("faults") / "rig", _PATIENT, seed=0) as running:
        yield running


@pytest.fixture(scope="module")
def rig(tiny_bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with _running(tiny_bundles, tmp_path_factory) as running:
        yield running


def still(each: Received) -> bool:
    return each.state in STILL


def moving(each: Received) -> bool:
    return each.motion


@pytest.mark.parametrize("name", _SHORT)
def test_the_robot_moves_again_after_a_fault_and_no_command_breaks_a_rule(rig: Rig, name: str) -> None:
    fault, shows = next(fault for fault in FAULTS if fault.name == name), _SHORT[name]
    assert rig.wait_for(moving, _PATIENCE_S) is not None
    before = Before.of(rig)
    fault.do(rig)
    if fault.expect is Expect.HOLD:
        assert rig.wait_for(still, _PATIENCE_S) is not None
    if shows is not None:
        # A bit may happen to mean nothing: then more of them.
        again = fault.do if name.startswith("a bit flipped") else lambda rig: None
        assert _comes_true(lambda: shows(rig, before) or again(rig))
    done_at = time.monotonic()
    fault.undo(rig)
    # From here on no picture of before the fault may be acted on: this motion comes of one that the fault met.
    assert rig.wait_for(lambda each: each.motion and each.at > done_at + _MAX_AGE_MS / 1e3, _PATIENCE_S) is not None
    assert account(rig.commands(), rig.records(), _MAX_AGE_MS).violations == ()
    assert rig.daemon.poll() is None


def test_the_robots_own_watchdog_stops_it_when_the_control_process_is_killed(
    tiny_bundles: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with _running(tiny_bundles, tmp_path_factory) as rig:  # of its own: no other test could use it afterwards
        perception = rig.perception()
        os.kill(rig.daemon.pid, signal.SIGKILL)
        assert _comes_true(lambda: rig.driver.watchdog_stops and rig.driver.moving_for(time.monotonic()) == 0.0)
        assert _comes_true(lambda: not Path(f"/proc/{perception}").exists()), "perception ends with control"
        counted = account(rig.commands(), rig.records(), _MAX_AGE_MS)
        assert counted.violations == ()
        assert counted.motions > 0


def _comes_true(what: Callable[[], object]) -> bool:
    until = time.monotonic() + _PATIENCE_S
    while not (true := what()) and time.monotonic() < until:
        time.sleep(0.05)
    return bool(true)
