"""The daemon with Meta-World for its robot: real processes, a real world, and the simulator killed under it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.link import LinkProxy
from splitvla_edge.__main__ import main
from splitvla_edge.daemon.episodes import Outcome, read_episodes
from splitvla_edge.daemon.record import STEPS_FILE, read_steps
from splitvla_edge.robots import instruction_of
from splitvla_edge.robots.metaworld import adapter
from splitvla_edge.robots.metaworld.actions import MAX_STEP_M
from splitvla_edge.robots.simulator.robot import PICTURES, SimulatedRobot
from splitvla_edge.robots.simulator.world import SimulatorSettings
from splitvla_shared.bundle import open_bundle
from splitvla_shared.errors import ConfigError
from tests.daemons import Daemon, moving
from tests.fake_server import highest_bins, serving
from tests.local_graphs import metadata, write_local_policy
from tests.sim_fakes import needs_world


@pytest.fixture
def server(tiny_bundles: Path) -> Iterator[str]:
    """Answers with the token of the highest bin in every dimension."""
    with serving(highest_bins(open_bundle(tiny_bundles / "edge", "edge").spec)) as address:
        yield address


def simulated(bundles: Path, server: str, run_dir: Path, *options: str) -> Daemon:
    robot = ("--robot", "metaworld:push", "--control-hz", "10", *options)
    return Daemon(bundles / "edge", server, run_dir, *robot)


@needs_world
def test_episodes_are_run_to_their_end_and_recorded(tiny_bundles: Path, server: str, tmp_path: Path) -> None:
    # The second episode's first action may take as long as an episode lasts: 20 steps are patience for a busy machine.
    options = ("--episodes", "2", "--seed", "70", "--set", "simulator.steps=20", "--set", "simulator.record=true")
    with simulated(tiny_bundles, server, tmp_path / "run", *options) as daemon:
        code, out, err = daemon.finish()
    assert code == 0, err
    episodes = read_episodes(tmp_path / "run")
    assert [(each.number, each.seed, each.outcome) for each in episodes] == [
        (0, 70, Outcome.TIMEOUT),
        (1, 71, Outcome.TIMEOUT),
    ]
    # A busy machine's commands may be overtaken: the world goes on by all of them, and draws after the newest only.
    assert all(each.steps >= 20 for each in episodes)
    assert f"episode 1, seed 71: not done in {episodes[1].steps} steps" in out
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["instruction"] == "push the puck to the green goal", "the task's own, where none is given"
    records = read_steps(tmp_path / "run" / STEPS_FILE)
    between = [record for record in records if record.cause == "robot or perception not ready" and record.t > 0]
    assert between, "no action of the old episode's pictures is executed in the new one"
    pictures = {int(path.stem) for path in (tmp_path / "run" / PICTURES).glob("*.jpg")}
    actions = {record.tick for record in records if record.age_ms is not None}  # DEGRADED, where the machine is busy
    executed = sum(each.motions for each in episodes)
    assert 0 < executed <= len(actions)
    assert pictures & actions, "of overtaken ones there is none"
    assert pictures <= {0, *(record.tick for record in records)}, "0: before the first command"


@needs_world
def test_killing_the_simulator_is_a_hold_and_the_next_episode_begins(
    tiny_bundles: Path, server: str, tmp_path: Path
) -> None:
    with simulated(tiny_bundles, server, tmp_path / "run", "--episodes", "9") as daemon:
        first = daemon.wait_for(moving)
        before = daemon.wait_for(lambda record: moving(record) and record.tick > first.tick + 3)
        os.kill(daemon.child("simulate"), signal.SIGKILL)
        held = daemon.wait_for(lambda record: record.state == "HOLD" and "simulator" in record.detail)
        daemon.wait_for(moving)
        daemon.process.send_signal(signal.SIGTERM)
        code, _, err = daemon.finish()
    assert code == 0, err
    assert "the simulator ended with -9; it is started again in 0.1 s" in err
    assert held.command[:6] == (0.0,) * 6, "zero delta"
    assert held.command[6] == before.command[6], "the gripper's target is kept"
    assert read_episodes(tmp_path / "run")[0].outcome is Outcome.LOST
    ticks = [record.tick for record in read_steps(tmp_path / "run" / STEPS_FILE)]
    assert ticks == list(range(1, len(ticks) + 1)), "the control process never missed a tick"


@needs_world
def test_when_the_server_is_gone_the_local_policy_acts_slowly_if_it_has_its_licence(
    tiny_bundles: Path, server: str, tmp_path: Path
) -> None:
    spec = open_bundle(tiny_bundles / "edge", "edge").spec
    path = write_local_policy(
        tmp_path / "local.onnx",
        spec,
        [[-1.0] * 7],  # what the server says too
        instruction=None,
        said=metadata(spec, instructions=json.dumps([instruction_of("metaworld:push")])),
    )
    options = ("--local-policy", str(path), "--episodes", "9", "--set", "fallback.local_samples=3")
    host, _, port = server.rpartition(":")
    with (
        LinkProxy((host, int(port))) as link,
        simulated(tiny_bundles, link.address, tmp_path / "run", *options, "--set", "simulator.steps=600") as daemon,
    ):
        moved = daemon.wait_for(moving)
        daemon.wait_for(lambda record: moving(record) and record.tick > moved.tick + 10)
        link.partition()
        local = daemon.wait_for(lambda record: record.state == "LOCAL" and record.age_ms is not None)
        link.heal()
        daemon.wait_for(moving)
    assert local.sequence is None
    held = [record for record in daemon.records if record.state == "HOLD" and record.tick < local.tick]
    assert local.t - held[0].t > 0.45, "half a second of hold came first"
    fastest = max(abs(value) for value in moved.command[:3])
    assert max(abs(value) for value in local.command[:3]) <= 0.26 * max(fastest, MAX_STEP_M)


@needs_world
def test_where_the_operator_wants_the_local_policy_no_server_need_be_there(tiny_bundles: Path, tmp_path: Path) -> None:
    spec = open_bundle(tiny_bundles / "edge", "edge").spec
    said = metadata(spec, instructions=json.dumps([instruction_of("metaworld:push")]))
    path = write_local_policy(tmp_path / "local.onnx", spec, [[0.2] * 7], instruction=None, said=said)
    options = ("--local-policy", str(path), "--mode", "forced-local")
    with simulated(tiny_bundles, "127.0.0.1:9", tmp_path / "run", *options) as daemon:
        daemon.wait_for(lambda record: record.state == "LOCAL" and record.age_ms is not None)


@needs_world
def test_a_world_that_can_t_draw_ends_the_run_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "teapot")
    space = adapter.action_space(0.2, 0.8)
    with pytest.raises(ConfigError, match="its own message, above"):
        SimulatedRobot.open("metaworld:push", space, SimulatorSettings(), 0.2, tmp_path)
    assert capfd.readouterr().err == (
        "splitvla-edge: error: metaworld: MUJOCO_GL is 'teapot'; one of egl, osmesa, glfw\n"
    )


RUN = ("run", "--bundle", "bundle", "--server", "127.0.0.1:9", "--robot")


def test_without_a_gl_library_one_line_names_the_debian_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_library() -> str:
        raise ConfigError("metaworld: no GL library; apt-get install libegl1")

    monkeypatch.setattr(adapter, "choose_gl", no_library)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert main([*RUN, "metaworld:push"]) == 2
    assert capsys.readouterr().err == "splitvla-edge: error: metaworld: no GL library; apt-get install libegl1\n"


def test_without_the_extra_one_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([*RUN, "metaworld:push"]) == 2
    assert capsys.readouterr().err.endswith("metaworld is not installed; pip install 'splitvla[sim]'\n")


@pytest.mark.parametrize("robot", ["metaworld", "metaworld:", "metaworld:juggle"])
def test_an_unknown_task_is_named_with_those_that_there_are(robot: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, robot]) == 2
    assert "one of reach-red, " in capsys.readouterr().err


def test_a_simulated_robot_knows_its_task_s_instruction_and_no_other_robot_does() -> None:
    assert instruction_of("metaworld:reach-blue") == "reach the blue ball"
    assert instruction_of("replay") == ""


def test_the_arm_s_limits_are_metres_a_step_below_its_speed_limit_and_holding_is_no_motion() -> None:
    fast, slow = adapter.action_space(0.2, 0.8), adapter.action_space(0.05, 0.2)
    assert fast.high == (MAX_STEP_M,) * 3 + (0.0,) * 3 + (1.0,)
    assert slow.high[:3] == pytest.approx((0.01,) * 3)
    assert slow.bounded((9.0, -9.0, 0.0, 1.0, 1.0, 1.0, 2.0)) == pytest.approx((0.01, -0.01, 0, 0, 0, 0, 1))
    assert fast.hold((0.04,) * 6 + (0.3,), None, 0.3, 0.0) == (0.0,) * 6 + (0.3,)
