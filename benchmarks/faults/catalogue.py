"""The faults: a table of what is done to a running robot, what undoes it, and what is expected of it.

Every action takes the rig and returns at once. A fault without `undo` ends by itself, or with the run.
"""

from __future__ import annotations

import enum
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.faults.cameras import Mood
from benchmarks.faults.rig import Rig, Setup
from benchmarks.faults.scripted import Answer, ScriptedServer
from benchmarks.link import DOWN, UP, Bursts, Trace
from splitvla_edge.daemon.record import STEPS_FILE

Action = Callable[[Rig], None]

REAL, STANDBY, SCRIPTED = Setup(), Setup(standby=True), Setup(server="scripted")
_HOGS = 4
_STANDBY_COMES_S = 5.0  # it is begun a second after the first process has spoken, and loads
_FLAPPING = Trace(3.0, np.array([100.0, 2.0]))


class Expect(enum.Enum):
    """What the robot must do.

    RIDE: it may hold or stop, and moves again. HOLD: it holds, and moves again. LATCH: it ends in SAFE_STOP, and moves
    again after the operator's reset. STOP: it ends in SAFE_STOP, and no reset helps. DEAD: no command comes any more.
    """

    RIDE = "moves"
    HOLD = "holds, moves again"
    LATCH = "safe stop, moves after reset"
    STOP = "safe stop for good"
    DEAD = "the robot's watchdog stops it"


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table.

    lasts_s: from `do` to `undo`. settle_s: how long it may take to move again. steady_s: of motion before, at least.
    """

    name: str
    do: Action
    undo: Action
    lasts_s: float
    expect: Expect
    setup: Setup = REAL
    settle_s: float = 10.0
    times: int | None = None  # None: as often as the runner says; 1 for what can be done once
    steady_s: float = 1.0
    rung_changes: int | None = None  # at most so many in the run; None: any number


def _nothing(rig: Rig) -> None:
    """The fault has ended by itself."""


def _partition(seconds: float, expect: Expect) -> Fault:
    return Fault(
        f"partition, {seconds:g} s", lambda rig: rig.link.partition(), lambda rig: rig.link.heal(), seconds, expect
    )


def _rate(mbps: float, expect: Expect) -> Fault:
    return Fault(
        f"bandwidth 100 to {mbps:g} Mbit/s",
        lambda rig: rig.link.set_rate(mbps),
        lambda rig: rig.link.set_rate(100.0),
        6.0,
        expect,
    )


def _camera(name: str, mood: Mood) -> Fault:
    def do(rig: Rig) -> None:
        rig.camera.mood = mood

    def undo(rig: Rig) -> None:
        rig.camera.mood = Mood.GOOD

    return Fault(f"camera {name}", do, undo, 2.5, Expect.HOLD)


def _perception_killed(how: str, standby: str, steady_s: float, expect: Expect = Expect.RIDE) -> Fault:
    """With a standby the next action may come before the last one has ended."""
    setup = Setup(options=("--set", f"standby={standby}"))
    return Fault(
        f"perception killed{how}", _signal_perception(signal.SIGKILL), _nothing, 0.0, expect, setup,
        steady_s=steady_s,
    )  # fmt: skip


def _lie(name: str, lie: Callable[[ScriptedServer], Answer], expect: Expect = Expect.HOLD) -> Fault:
    def do(rig: Rig) -> None:
        rig.scripted.answer = lie(rig.scripted)

    def undo(rig: Rig) -> None:
        rig.scripted.answer = None

    return Fault(name, do, undo, 1.5, expect, SCRIPTED)


def _signal_server(number: signal.Signals) -> Action:
    return lambda rig: rig.real.send(number)


def _signal_perception(number: signal.Signals) -> Action:
    return lambda rig: os.kill(rig.perception(), number)


def _signal_daemon(number: signal.Signals) -> Action:
    return lambda rig: rig.daemon.send_signal(number)


def _kill_and_take_over(rig: Rig) -> None:
    rig.real.send(signal.SIGKILL)
    rig.take_over()


def _kill_both(rig: Rig) -> None:
    rig.real.send(signal.SIGKILL)
    os.kill(rig.perception(), signal.SIGKILL)


def _kill_in_a_partition(rig: Rig) -> None:
    rig.link.partition()
    os.kill(rig.perception(), signal.SIGKILL)


def _limit_files(bytes_: int) -> Action:
    """The largest file that the daemon may write, as a full disk would have it; its pipe to the robot is no file."""

    def action(rig: Rig) -> None:
        limit = bytes_ if bytes_ >= 0 else resource.RLIM_INFINITY
        if bytes_ == 0:
            limit = (rig.run_dir / STEPS_FILE).stat().st_size + 100  # in the middle of a line
        _, hard = resource.prlimit(rig.daemon.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(rig.daemon.pid, resource.RLIMIT_FSIZE, (limit, hard))

    return action


def _hog(rig: Rig) -> None:
    burn = [sys.executable, "-c", "while True: pass"]
    for _ in range(_HOGS):
        process = subprocess.Popen(burn)
        rig.extras.callback(process.wait)
        rig.extras.callback(process.kill)


def _overload(rig: Rig) -> None:
    command = [sys.executable, "-m", "benchmarks.faults.load", str(rig.edge_bundle), rig.server_address]
    process = subprocess.Popen(command)
    rig.extras.callback(process.wait)
    rig.extras.callback(process.kill)


def _relieve(rig: Rig) -> None:
    rig.extras.close()


FAULTS: tuple[Fault, ...] = (
    Fault("none", _nothing, _nothing, 3.0, Expect.RIDE),
    # The server
    Fault("server killed, another takes over at once", _kill_and_take_over, _nothing, 0.0, Expect.HOLD, STANDBY, 8, 1),
    Fault(
        "server killed, back after 2 s", _signal_server(signal.SIGKILL), Rig.take_over, 2.0, Expect.HOLD, STANDBY, 8, 1
    ),
    Fault(
        "server drained, another takes over", _signal_server(signal.SIGTERM), Rig.take_over, 0.3, Expect.RIDE, STANDBY,
        8, 1,
    ),
    Fault("server hung (SIGSTOP), 2 s", _signal_server(signal.SIGSTOP), _signal_server(signal.SIGCONT), 2, Expect.HOLD),
    _lie("server slow: 400 ms", lambda server: server.slow(0.4)),
    Fault("server overloaded 10x", _overload, _relieve, 4.0, Expect.RIDE),
    Fault(
        "another model after the reconnection", _kill_and_take_over, _nothing, 0.0, Expect.STOP,
        Setup(standby=True, other_model=True), 8, 1,
    ),
    # The link
    _partition(0.3, Expect.HOLD),
    _partition(2.0, Expect.HOLD),
    _partition(12.0, Expect.LATCH),
    _partition(60.0, Expect.LATCH),
    Fault("partition of the way up, 1 s", lambda rig: rig.link.partition(UP), lambda rig: rig.link.heal(), 1.0,
          Expect.HOLD),
    Fault(
        "partition of the way down, 1 s", lambda rig: rig.link.partition(DOWN), lambda rig: rig.link.heal(), 1,
        Expect.HOLD,
    ),
    Fault("connections reset", lambda rig: rig.link.reset(), _nothing, 0.0, Expect.RIDE),
    Fault("connections half-open", lambda rig: rig.link.half_open(), _nothing, 0.0, Expect.RIDE),
    Fault(
        "bursts of 300 ms, 1 s in 3",
        lambda rig: rig.link.change(bursts=Bursts(3.0, 1.0, 300.0)),
        lambda rig: rig.link.change(bursts=None),
        6.0,
        Expect.HOLD,
    ),
    _rate(2.0, Expect.RIDE),
    _rate(0.8, Expect.RIDE),
    Fault(
        "bandwidth flapping, 100 and 2 Mbit/s, 3 s each", lambda rig: rig.link.set_rate(_FLAPPING),
        lambda rig: rig.link.set_rate(100.0), 240.0, Expect.RIDE, times=1, rung_changes=6,
    ),
    Fault("reply late: 350 ms on the way down", lambda rig: rig.link.change(DOWN, delay_ms=350.0),
          lambda rig: rig.link.change(DOWN, delay_ms=0.0), 2.0, Expect.HOLD),
    # Damage
    Fault("a bit flipped on the way up", lambda rig: rig.link.corrupt(UP, 8), _nothing, 0.0, Expect.RIDE),
    Fault("a bit flipped on the way down", lambda rig: rig.link.corrupt(DOWN, 3), _nothing, 0.0, Expect.RIDE),
    Fault("bytes duplicated on the way down", lambda rig: rig.link.duplicate(DOWN, 3), _nothing, 0.0, Expect.RIDE),
    Fault("stream cut in the middle of a reply", lambda rig: rig.link.truncate(DOWN, 5), _nothing, 0.0, Expect.RIDE),
    Fault("stream cut in the middle of a frame", lambda rig: rig.link.truncate(UP, 20_000), _nothing, 0.0, Expect.RIDE),
    _lie("reply truncated", lambda server: server.truncated),
    _lie("reply of an older frame", lambda server: server.of_an_older_frame),
    _lie("reply not finite", lambda server: server.not_finite),
    _lie("reply outside the action bins", lambda server: server.outside_the_bins),
    # The robot's own computer
    Fault("perception stalled (SIGSTOP), 2 s", _signal_perception(signal.SIGSTOP), _signal_perception(signal.SIGCONT),
          2.0, Expect.HOLD),
    _perception_killed("", "started", _STANDBY_COMES_S),
    _perception_killed(", a standby is loaded", "loaded", _STANDBY_COMES_S),
    _perception_killed(", no standby", "off", 1.0, Expect.HOLD),
    Fault("perception killed while the link is away, 2 s", _kill_in_a_partition, lambda rig: rig.link.heal(), 2.0,
          Expect.HOLD, steady_s=_STANDBY_COMES_S),
    Fault("perception and server killed, the server back after 2 s", _kill_both, Rig.take_over, 2.0, Expect.HOLD,
          STANDBY, 8, 1, _STANDBY_COMES_S),
    _camera("silent", Mood.SILENT),
    _camera("black", Mood.BLACK),
    _camera("stuck on one picture", Mood.STUCK),
    _camera("unplugged", Mood.GONE),
    Fault("camera's time set back by 1 s", lambda rig: rig.camera_time.step(-1.0), lambda rig: rig.camera_time.step(0),
          1.5, Expect.HOLD, Setup(camera_clock=True)),
    Fault("disk full for the log", _limit_files(0), _limit_files(-1), 3.0, Expect.RIDE),
    Fault("wall clock stepped by an hour", lambda rig: rig.clock.step(3600), lambda rig: rig.clock.step(0), 2.0,
          Expect.RIDE, Setup(wall_clock=True)),
    Fault(f"{_HOGS} processes hog {os.cpu_count()} cores", _hog, _relieve, 5.0, Expect.RIDE),
    Fault("control process stopped (SIGSTOP), 2 s", _signal_daemon(signal.SIGSTOP), _signal_daemon(signal.SIGCONT),
          2.0, Expect.LATCH),
    Fault("control process killed", _signal_daemon(signal.SIGKILL), _nothing, 2.0, Expect.DEAD, times=1),
)  # fmt: skip
