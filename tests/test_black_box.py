"""The black box: bounded, written on a stop, and the machine does the same again on what it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fallback_known import alternating
from benchmarks.fallback_sim import SPACE, Link, Moment, Way, simulate
from splitvla_edge.__main__ import main
from splitvla_edge.daemon.black_box import BlackBox, replay
from splitvla_edge.fallback import (
    Command,
    FallbackSettings,
    LocalChunk,
    Miss,
    Outcome,
    Ready,
    State,
    TickInputs,
)
from splitvla_edge.fallback.machine import FallbackMachine
from splitvla_edge.fallback.snapshot import restore, take
from splitvla_shared.errors import ConfigError


class Recorder(FallbackMachine):
    """A machine that keeps a black box of its ticks, as the control loop does; stops by e-stop at `stop_at`."""

    folder = Path()
    stop_at = 0.0

    def tick(self, now: float, inputs: TickInputs) -> Command:
        if not hasattr(self, "box"):
            self.machine = FallbackMachine(self.settings, self.space, self.dt_s)
            self.box = BlackBox(self.machine, self.folder)
        self.box.before(now)
        inputs = inputs._replace(estop=now >= self.stop_at)
        command = self.machine.tick(now, inputs)
        self.hint = self.machine.hint  # type: ignore[method-assign]
        self.box.after(now, inputs, command)
        if command.state is State.SAFE_STOP:
            self.box.close()
        return command


def record(monkeypatch: pytest.MonkeyPatch, folder: Path, link: Link, seconds: float, **options: int) -> list[Moment]:
    monkeypatch.setattr(Recorder, "folder", folder)
    monkeypatch.setattr(Recorder, "stop_at", seconds - 1.0)
    return simulate(link, seconds, machine=Recorder, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk_length", [1, 8])
def test_the_machine_gives_the_same_commands_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chunk_length: int
) -> None:
    moments = record(monkeypatch, tmp_path, alternating(100.0, 2.0), 20.0, chunk_length=chunk_length)
    assert moments[-1].command.state is State.SAFE_STOP
    replayed = list(replay(tmp_path / "black-box-1.bin"))
    assert replayed[-1].again.state is State.SAFE_STOP
    assert len(replayed) == sum(moment.now < 19.05 for moment in moments)
    assert all(each.same for each in replayed)
    assert {State.HOLD, State.SAFE_STOP} < {each.again.state for each in replayed}


def test_a_long_run_leaves_two_to_three_minutes_that_need_no_beginning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record(monkeypatch, tmp_path, alternating(100.0, 20.0), 270.0, chunk_length=8)
    replayed = list(replay(tmp_path / "black-box-1.bin"))
    assert 120.0 <= replayed[-1].now - replayed[0].now <= 181.0
    assert all(each.same for each in replayed)


def test_what_is_kept_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("splitvla_edge.daemon.black_box._SEGMENT_S", 1.0)
    monkeypatch.setattr("splitvla_edge.daemon.black_box._SEGMENTS", 100)
    monkeypatch.setattr("splitvla_edge.daemon.black_box._MAX_BYTES", 10_000)
    moments = record(monkeypatch, tmp_path, lambda t, size: Way(20.0), 10.0)
    replayed = list(replay(tmp_path / "black-box-1.bin"))
    assert 0 < len(replayed) < len(moments) / 2
    assert all(each.same for each in replayed)


def test_a_recording_that_begins_in_a_hold_goes_on_with_the_time_that_is_left_of_it() -> None:
    machine, again = (FallbackMachine(FallbackSettings(), SPACE, 0.05) for _ in range(2))
    machine.state = State.HOLD
    machine.hold_time.drain(3.0)
    machine.local_time.drain(2.0)
    restore(again, take(machine))
    assert (again.hold_time.left_s, again.local_time.left_s) == (2.0, 28.0)
    assert take(again) == take(machine)


def test_another_machine_is_found_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(monkeypatch, tmp_path, lambda t, size: Way(20.0), 5.0)
    path = tmp_path / "black-box-1.bin"
    path.write_bytes(path.read_bytes().replace(b'"max_age_ms": 300.0', b'"max_age_ms": 90.00'))
    assert not all(each.same for each in replay(path))
    assert main(["replay-log", str(path)]) == 1
    assert "DIFFERENT: recorded" in capsys.readouterr().out


@pytest.mark.parametrize("cut", [4, 12, 300, -7])
def test_a_file_that_is_not_whole_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cut: int) -> None:
    record(monkeypatch, tmp_path, lambda t, size: Way(20.0), 3.0)
    path = tmp_path / "black-box-1.bin"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigError):
        list(replay(path))
    with pytest.raises(ConfigError):
        list(replay(tmp_path / "none.bin"))


def test_a_file_that_was_changed_is_refused_whatever_the_machine_does_on_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record(monkeypatch, tmp_path, lambda t, size: Way(20.0), 3.0)
    path = tmp_path / "black-box-1.bin"
    path.write_bytes(path.read_bytes().replace(b'"chunk": null', b'"chunk": 1234'))
    with pytest.raises(ConfigError, match=r"is damaged, or .* has a bug: AttributeError"):
        list(replay(path))


def test_a_folder_that_refuses_the_file_costs_the_file_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = FallbackMachine(FallbackSettings(), SPACE, 0.05)
    box = BlackBox(machine, tmp_path / "missing")
    box.before(1.0)
    inputs = TickInputs(estop=True)
    box.after(1.0, inputs, machine.tick(1.0, inputs))
    box.close()
    assert "no black box" in capsys.readouterr().err


def test_a_tick_after_a_stall_has_hundreds_of_messages_and_is_kept_and_played_again(tmp_path: Path) -> None:
    """What one receive gives at most, and what perception said before."""
    machine = FallbackMachine(FallbackSettings(), SPACE, 0.05)
    box = BlackBox(machine, tmp_path)
    answers = tuple(Miss(number, Outcome.MISSED, "late") for number in range(256))
    ready, local = Ready(SPACE.dims, 1, "f"), LocalChunk(1, 0.9, ((0.0,) * SPACE.dims,), 1.0, 1)
    inputs = TickInputs(replies=answers, ready=ready, local=local, frame_at=0.99, estop=True)
    box.before(1.0)
    box.after(1.0, inputs, machine.tick(1.0, inputs))
    box.close()
    (tick,) = replay(tmp_path / "black-box-1.bin")
    assert tick.same


def test_the_command_line_tells_the_story_and_that_nothing_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(monkeypatch, tmp_path, lambda t, size: Way(20.0), 3.0)
    assert [file.name for file in tmp_path.iterdir()] == ["black-box-1.bin"], "one for a stop, however long it lasts"
    assert main(["replay-log", str(tmp_path / "black-box-1.bin")]) == 0
    told = capsys.readouterr().out
    assert "SAFE_STOP e-stop pressed" in told
    assert "0 commands differ" in told
