"""The demo: what it shows where there is no simulator, and that its options are the daemon's."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import shows
from benchmarks.closed_loop import trained
from benchmarks.shows import Show, choose_show, recorded, simulated
from splitvla_edge.__main__ import build_parser
from splitvla_edge.daemon.run import RunSettings
from splitvla_shared.config import load_config
from splitvla_shared.errors import ConfigError
from tests.sim_fakes import needs_world


def test_without_a_gl_library_the_demo_says_so_in_one_line_and_plays_recorded_frames(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_library() -> None:
        raise ConfigError("metaworld: no GL library; apt-get install libegl1")

    monkeypatch.setattr(shows, "check_machine", no_library)
    assert "--frames" in choose_show(None).options
    said = capsys.readouterr().out
    assert said == (
        "demo: recorded frames instead of the simulator: metaworld: no GL library; apt-get install libegl1\n"
    )


def test_without_a_trained_policy_the_demo_plays_recorded_frames(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shows, "check_machine", lambda: None)
    monkeypatch.setattr(trained, "_FOLDER", tmp_path)
    assert trained.find_trained() is None
    assert "--frames" in choose_show(None).options
    assert "no trained policy" in capsys.readouterr().out


def test_the_trained_policy_is_the_folder_with_a_checkpoint_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trained, "_FOLDER", tmp_path)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    assert trained.trained() == tmp_path / "policy"


def settings_of(show: Show) -> RunSettings:
    """What the daemon makes of the show's options."""
    options = build_parser().parse_args(["run", "--bundle", "b", "--server", "h:1", *show.options])
    given = {"robot": options.robot, "simulator.episodes": options.episodes, "replay.frames": options.frames}
    return load_config(RunSettings, None, options.set, given)


def test_the_recorded_show_s_options_are_the_daemon_s() -> None:
    settings = settings_of(recorded())
    assert settings.robot == "replay"
    assert settings.replay.frames is not None
    assert settings.replay.frames.is_file()


@needs_world
def test_the_simulator_s_show_ends_when_the_task_is_done_and_keeps_its_pictures(tmp_path: Path) -> None:
    show = simulated(tmp_path)
    settings = settings_of(show)
    assert settings.robot.startswith("metaworld:")
    assert (settings.simulator.until_done, settings.simulator.record) == (True, True)
    assert settings.fallback.hold_to_stop_s > show.script.dead_for_s


@needs_world
def test_the_simulator_s_show_says_which_limits_it_relaxes() -> None:
    show = simulated(None)
    fallback = settings_of(show).fallback
    for said in (
        f"up to {fallback.max_age_ms:g} ms",
        f"{fallback.hold_to_stop_s:g} s of hold",
        f"ticks {fallback.overrun_ticks:g} periods late",
    ):
        assert said in show.intro
