"""The supervisor with real processes of a few lines: started again, taken over from, killed, and never given up."""

from __future__ import annotations

import errno
import io
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from splitvla_edge.daemon.channel import Channel, Message
from splitvla_edge.daemon.datagrams import ChannelClosed
from splitvla_edge.daemon.perception import PerceptionSettings
from splitvla_edge.daemon.supervisor import Supervisor, release_subcommand, start_subcommand
from splitvla_edge.fallback import Hint
from tests.daemons import PATIENCE_S


def start_script(script: str) -> Callable[[int], subprocess.Popen[str]]:
    """A perception process of a few lines; `fd` is its end of the channel."""

    def start(fd: int) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", f"fd = {fd}\n{script}"], pass_fds=(fd,), text=True)

    return start


Supervise = Callable[..., Supervisor[Message]]


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    """Makes supervisors of perception, which end whatever becomes of the test. An end that was made already is none."""
    made: list[Supervisor[Message]] = []

    def make(start: Callable[[int], subprocess.Popen[str]], pair: Any = Channel.pair, **options: Any) -> Any:
        made.append(Supervisor("perception", pair, start, **options))
        return made[-1]

    yield make
    for each in made:
        each.end()


def test_a_process_that_talks_nonsense_is_killed_and_started_again(supervise: Supervise) -> None:
    supervisor = supervise(start_script(_NONSENSE))
    supervisor.begin()
    until = time.monotonic() + PATIENCE_S
    while supervisor.generation < 2 and time.monotonic() < until:
        assert supervisor.receive() == []
        supervisor.send(Hint(1, 0, 0.3, 0.1, 0.5, True))
        time.sleep(0.01)
    supervisor.end()
    assert supervisor.generation == 2
    assert (supervisor.up, supervisor.pid) == (False, None)


def test_a_process_that_hangs_is_killed_for_another_when_control_asks_for_it(
    supervise: Supervise, capfd: pytest.CaptureFixture[str]
) -> None:
    supervisor = supervise(start_script("import time; time.sleep(60)"))
    supervisor.begin()
    _until(lambda: supervisor.up)
    supervisor.replace("hung")
    _until(lambda: supervisor.generation == 2)
    supervisor.end()
    assert "perception hung and ended with -9; it is started again" in capfd.readouterr().err


def test_a_process_that_does_not_end_with_the_channel_is_killed(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitvla_edge.daemon.supervisor._END_S", 0.2)
    processes = []

    def start(fd: int) -> subprocess.Popen[str]:
        processes.append(start_script("import time; time.sleep(60)")(fd))
        return processes[0]

    supervisor = supervise(start)
    supervisor.begin()
    until = time.monotonic() + PATIENCE_S
    while not supervisor.up and time.monotonic() < until:
        time.sleep(0.01)
    supervisor.end()
    assert processes[0].wait(PATIENCE_S) == -signal.SIGKILL


def test_a_standby_ends_with_the_daemon_and_one_that_died_is_no_standby(supervise: Supervise) -> None:
    """What it begins says a word and stays; its standby is killed before it is needed."""
    begun: list[subprocess.Popen[str]] = []

    def start(fd: int) -> subprocess.Popen[str]:
        begun.append(start_script(_SPEAKS)(fd))
        return begun[-1]

    supervisor = supervise(start, standby=True)
    supervisor.begin()
    _until(lambda: supervisor.receive() is not None and len(begun) == 2)
    begun[1].kill()
    begun[1].wait(PATIENCE_S)
    begun[0].kill()
    _until(lambda: supervisor.receive() is not None and len(begun) == 4)
    assert (supervisor.pid, supervisor.generation, supervisor.restarts) == (begun[2].pid, 2, 1)
    supervisor.end()
    assert [process.poll() is None for process in begun] == [False] * 4


_NONSENSE = "import socket, time\nsocket.socket(fileno=fd).send(b'nonsense')\ntime.sleep(60)"
_SPEAKS = """
from splitvla_edge.daemon.channel import Channel, FrameSeen
channel = Channel.from_fd(fd)
channel.send(FrameSeen(1.0, 0))
channel.wait(60)
"""


def _until(what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not what() and time.monotonic() < until:
        time.sleep(0.01)
    assert what()


@pytest.mark.parametrize(("lived_s", "pauses"), [(0.0, ["0.1", "0.2"]), (60.0, ["0.1", "0.1"])])
def test_the_pause_before_a_restart_grows_only_while_processes_die_young(
    supervise: Supervise, lived_s: float, pauses: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    looks = itertools.count(0.0, lived_s)
    supervisor = supervise(start_script("raise SystemExit(1)"), clock=lambda: next(looks))
    supervisor.begin()
    _until(lambda: supervisor.restarts >= 2)
    supervisor.end()
    assert re.findall(r"started again in (\S+) s", capsys.readouterr().err)[:2] == pauses


def test_an_exit_that_no_restart_can_mend_is_final(supervise: Supervise) -> None:
    told: list[int | None] = []
    supervisor = supervise(start_script("raise SystemExit(3)"))
    supervisor.on_fatal = lambda: told.append(supervisor.fatal)
    supervisor.begin()
    supervisor._thread.join(PATIENCE_S)
    assert told == [3]
    assert (supervisor.generation, supervisor.restarts) == (1, 0)
    supervisor.end()


def test_an_end_that_comes_while_the_process_is_being_started_ends_it_too(supervise: Supervise) -> None:
    begun: list[subprocess.Popen[str]] = []

    def start(fd: int) -> subprocess.Popen[str]:
        begun.append(start_script("import time; time.sleep(60)")(fd))
        ending.start()
        _until(supervisor._ending.is_set)
        return begun[0]

    supervisor = supervise(start)
    ending = threading.Thread(target=supervisor.end)
    supervisor.begin()
    _until(lambda: bool(begun))
    assert begun[0].wait(PATIENCE_S) == -signal.SIGKILL
    ending.join()


def test_the_other_end_sees_that_the_daemon_is_gone() -> None:
    """perception must not outlive a control process that was killed: nobody else holds its end of the channel."""
    ours, theirs = Channel.pair()
    script = "from splitvla_edge.daemon.channel import Channel\nChannel.from_fd(fd).wait(30)"
    process = start_script(script)(theirs.fileno())
    theirs.close()
    ours.close()
    assert process.wait(PATIENCE_S) == 0


class Refusing:
    """`pair` and `start` of a machine that has no more of something: the first `times` calls are refused."""

    def __init__(self, script: str, *, pairs: int = 0, starts: int = 0, first: int = 0) -> None:
        """first: so many starts go well before that."""
        self._start, self.first = start_script(script), first
        self.pairs, self.starts = pairs, starts
        self.ours: list[Channel] = []
        self.begun: list[subprocess.Popen[str]] = []

    def pair(self) -> tuple[Channel, socket.socket]:
        if len(self.begun) >= self.first and self.pairs:
            self.pairs -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        ours, theirs = Channel.pair()
        self.ours.append(ours)
        return ours, theirs

    def start(self, fd: int) -> subprocess.Popen[str]:
        if len(self.begun) >= self.first and self.starts:
            self.starts -= 1
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        self.begun.append(self._start(fd))
        return self.begun[-1]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitvla_edge.daemon.supervisor._BACKOFF_S", (0.01, 0.01))
    monkeypatch.setattr("splitvla_edge.daemon.supervisor._LOOK_S", 0.01)
    monkeypatch.setattr("splitvla_edge.daemon.supervisor._WITHOUT_STANDBY_S", 0.01)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("lacking", [{"pairs": 2}, {"starts": 2}])
def test_a_process_that_can_t_be_started_for_now_is_tried_again(
    supervise: Supervise, lacking: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Refusing(_SPEAKS, **lacking)
    supervisor = supervise(machine.start, machine.pair)
    supervisor.begin()
    _until(lambda: supervisor.up)
    assert (supervisor.generation, supervisor.restarts) == (1, 2)
    supervisor.end()
    assert "perception can't be started (" in capsys.readouterr().err
    for channel in machine.ours:
        with pytest.raises(ChannelClosed):
            channel.wait(0.0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("lacking", [{"pairs": 2}, {"starts": 2}])
def test_without_a_standby_for_now_the_process_at_work_goes_on(
    supervise: Supervise, lacking: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Refusing(_SPEAKS, first=1, **lacking)
    supervisor = supervise(machine.start, machine.pair, standby=True)
    supervisor.begin()
    _until(lambda: supervisor.receive() is not None and len(machine.begun) == 2)
    assert (supervisor.generation, supervisor.restarts, supervisor.up) == (1, 0, True)
    supervisor.end()
    assert capsys.readouterr().err.count("there is no second perception for now (") == 1


class Terminal(io.StringIO):
    """Gone: raises. Stopped: hangs until `resume`."""

    def __init__(self, error: OSError | None = None) -> None:
        super().__init__()
        self.error, self.resume = error, threading.Event()

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        assert self.resume.wait(PATIENCE_S)
        return super().write(text)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), None], ids=["gone", "stopped"])
def test_a_terminal_that_is_gone_or_stopped_keeps_neither_a_tick_nor_a_restart(
    supervise: Supervise, error: OSError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(error)
    monkeypatch.setattr("sys.stderr", terminal)
    supervisor = supervise(start_script(_NONSENSE))
    supervisor.begin()
    _until(lambda: supervisor.receive() == [] and supervisor.generation >= 3)
    terminal.resume.set()
    supervisor.end()


def test_signals_for_the_daemon_leave_its_other_processes_alone(tmp_path: Path) -> None:
    """A signal to a unit goes to all of its processes: SIGUSR1 resets the daemon, SIGHUP is a lost session."""
    ours, theirs = Channel.pair()
    told = PerceptionSettings(tmp_path, "host:1", "pick up the can").to_json()
    process = start_subcommand("perceive", told, theirs.fileno())
    for number in (signal.SIGUSR1, signal.SIGHUP):
        process.send_signal(number)
    theirs.close()
    release_subcommand(process)
    assert process.wait(PATIENCE_S) == 0, "its turn never came"
    ours.close()


def test_ctrl_c_in_the_terminal_reaches_the_daemon_alone(tmp_path: Path) -> None:
    """It goes to the terminal's foreground group; the daemon ends perception when the robot has been stopped."""
    ours, theirs = Channel.pair()
    with theirs:
        process = start_subcommand(
            "perceive", PerceptionSettings(tmp_path, "host:1", "pick up the can").to_json(), theirs.fileno()
        )
    group = os.getpgid(process.pid)
    release_subcommand(process)
    assert process.wait(PATIENCE_S) == 0
    assert group == process.pid
    ours.close()
