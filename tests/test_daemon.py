"""The daemon as it is run: two real processes, a real gRPC server on loopback, SIGKILL and SIGTERM."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from splitvla_edge.daemon.record import STEPS_FILE, read_steps, run_has_ended
from splitvla_edge.daemon.run import RunSettings, run
from splitvla_edge.fallback import Outcome
from splitvla_edge.robots.replay import ReplaySettings
from splitvla_shared.bundle import open_bundle
from splitvla_shared.config import load_config
from splitvla_shared.errors import ConfigError, ObservationError
from splitvla_shared.recording import read_recording
from splitvla_shared.spec import ModelSpec
from splitvla_shared.wire import inference_pb2 as pb
from tests.daemons import Daemon, gray_frames, moving
from tests.fake_server import FakeServicer, description, highest_bins, serving

HZ = 20.0


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    return gray_frames(tmp_path / "frames")


@pytest.fixture
def servicer(tiny_bundles: Path) -> FakeServicer:
    """Serves the tiny model's spec and answers with the token of the highest bin in every dimension."""
    return highest_bins(open_bundle(tiny_bundles / "edge", "edge").spec)


@pytest.fixture
def server(servicer: FakeServicer) -> Iterator[str]:
    with serving(servicer) as address:
        yield address


def replaying(bundle: Path, server: str, frames: Path, *options: str) -> Daemon:
    """The daemon over these frames, with its run's folder beside them."""
    robot = ("--robot", "replay", "--frames", str(frames), "--fps", "20", "--instruction", "pick up the can")
    return Daemon(bundle, server, frames.parent / "run", *robot, "--control-hz", str(HZ), *options)


def test_it_plays_the_frames_to_their_end_with_one_command_a_tick(
    tiny_bundles: Path, server: str, frames: Path
) -> None:
    with replaying(tiny_bundles / "edge", server, frames) as daemon:
        code, out, err = daemon.finish()
    assert code == 0, err
    records = read_steps(daemon.run_dir / STEPS_FILE)
    assert [record.tick for record in records] == list(range(1, len(records) + 1))
    executed = [record.sequence for record in records if record.sequence is not None]
    assert len(executed) >= 5
    assert executed == sorted(set(executed))
    commands = [json.loads(line) for line in (daemon.run_dir / "commands.jsonl").read_text().splitlines()]
    assert [tuple(command["action"]) for command in commands] == [record.command for record in records]
    about = json.loads((daemon.run_dir / "run.json").read_text())
    assert (about["ended"], about["lines_lost"]) == (True, 0)
    assert f"{len(records)} ticks in" in out.splitlines()[-1]


def test_every_answer_is_recorded_to_distil_from_where_a_folder_is_named(
    tiny_bundles: Path, server: str, frames: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "recording"
    with replaying(tiny_bundles / "edge", server, frames, "--record-distill", str(folder)) as daemon:
        code, _, err = daemon.finish()
    assert code == 0, err
    (answers,) = read_recording(folder)
    answered = [record for record in read_steps(daemon.run_dir / STEPS_FILE) if record.stages is not None]
    assert len(answers) >= len(answered) > 0
    assert answers.instructions == ("pick up the can",)


@pytest.mark.parametrize(
    ("standby", "then"),
    [
        ("off", "it is started again in 0.1 s"),
        ("started", "another one takes over"),
        ("loaded", "another one takes over"),
    ],
)
def test_killing_perception_costs_a_hold_and_nothing_else(
    tiny_bundles: Path, server: str, frames: Path, standby: str, then: str
) -> None:
    with replaying(tiny_bundles / "edge", server, frames, "--loop", "--set", f"standby={standby}") as daemon:
        daemon.wait_for(moving)
        if standby != "off":
            daemon.wait_for(lambda _: len(daemon.children()) == 2)
        before = daemon.wait_for(moving)
        perception = daemon.oldest_child()
        os.kill(perception, signal.SIGKILL)
        held = daemon.wait_for(lambda record: record.state == "HOLD")
        after = daemon.wait_for(moving)
        assert perception not in daemon.children()
        daemon.process.send_signal(signal.SIGTERM)
        code, _, err = daemon.finish()
    assert code == 0, err
    assert f"perception ended with -9; {then}" in err
    assert before.sequence is not None
    assert after.sequence is not None
    assert after.sequence > before.sequence
    assert held.command[:6] == (0.0,) * 6, "zero delta"
    assert held.command[6] == before.command[6], "the gripper's target is kept"
    steps = list(read_steps(daemon.run_dir / STEPS_FILE))
    if standby == "off":  # another one may have taken over within a tick
        assert not all(record.perception_up for record in steps if record.tick > before.tick)
    assert [record.tick for record in steps] == list(range(1, len(steps) + 1)), "control never missed a tick"


def test_another_model_on_the_server_stops_the_robot_until_the_run_is_ended(
    tiny_bundles: Path, server: str, servicer: FakeServicer, frames: Path
) -> None:
    with replaying(tiny_bundles / "edge", server, frames, "--loop") as daemon:
        daemon.wait_for(moving)
        spec = open_bundle(tiny_bundles / "edge", "edge").spec
        other: ModelSpec = dataclasses.replace(spec, language_sha256="another").sealed()
        servicer.described = description(other)

        def refuse(request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "fingerprint is not the served model's")
            raise AssertionError("abort raises")

        servicer.infer = refuse
        stopped = daemon.wait_for(lambda record: record.state == "SAFE_STOP")
        assert stopped.cause == "contract violated"
        assert "language_sha256" in stopped.detail
        daemon.process.send_signal(signal.SIGINT)
        code, _, err = daemon.finish()
    assert code == 6, err
    assert "SAFE_STOP, contract violated: " in err


def test_the_operator_s_reset_begins_a_new_epoch(tiny_bundles: Path, server: str, frames: Path) -> None:
    with replaying(tiny_bundles / "edge", server, frames, "--loop", "--duration-s", "30") as daemon:
        daemon.wait_for(moving)
        daemon.process.send_signal(signal.SIGUSR1)
        again = daemon.wait_for(lambda record: record.epoch == 2 and moving(record))
        assert again.sequence is not None
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.finish()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_without_a_server_it_waits_disarmed_until_it_is_ended(
    tiny_bundles: Path, frames: Path, number: signal.Signals
) -> None:
    with replaying(tiny_bundles / "edge", "127.0.0.1:9", frames) as daemon:
        missed = daemon.wait_for(lambda record: record.miss != "")
        daemon.process.send_signal(number)
        code, _, err = daemon.finish()
    assert code == 0, err
    assert run_has_ended(daemon.run_dir)
    assert (missed.state, missed.miss) == ("INIT", Outcome.UNREACHABLE.name)
    assert "127.0.0.1:9" in missed.detail


def test_a_bundle_that_is_none_ends_the_run_with_its_own_exit_code(tmp_path: Path, frames: Path) -> None:
    with replaying(tmp_path, "127.0.0.1:9", frames) as daemon:
        code, _, err = daemon.finish()
    assert code == 3
    assert "is not a bundle" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "overrides",
    [
        ["control_hz=0"],
        ["duration_s=-1.0"],
        ["tls_ca='ca.pem'"],
        ["fallback.max_age_ms=-1"],
        ["fallbak.max_age_ms=1"],
        ["fallback.latency_window=7"],
    ],
)
def test_settings_that_make_no_sense_are_refused(overrides: list[str]) -> None:
    with pytest.raises(ConfigError):
        load_config(RunSettings, None, overrides)


def test_a_hedge_without_a_second_server_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs two servers"):
        load_config(RunSettings, None, ["hedge_ms=120.0", "server='host:1'"])
    assert load_config(RunSettings, None, ["hedge_ms=120.0", "server='host:1,other:1'"]).hedge_ms == 120.0


def test_a_run_without_instruction_bundle_or_server_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(ObservationError, match="instruction"):
        run(RunSettings(bundle=tmp_path, server="host:1"))
    with pytest.raises(ConfigError, match="bundle and server"):
        run(RunSettings(instruction="pick up the can"))
    with pytest.raises(ConfigError, match="robot 'arm' is unknown"):
        run(RunSettings(tmp_path, "host:1", "arm", "pick up the can", replay=ReplaySettings(tmp_path)))
