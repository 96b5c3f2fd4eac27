"""The daemon as it is run: two real processes, a real gRPC server on loopback, SIGKILL and SIGTERM."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image as PillowImage

from splitvla_edge.channel import Channel
from splitvla_edge.daemon import RunSettings, run
from splitvla_edge.fallback import Hint, Outcome
from splitvla_edge.record import STEPS_FILE, read_steps
from splitvla_edge.robots.replay import ReplaySettings
from splitvla_edge.supervisor import Supervisor
from splitvla_shared.bundle import open_bundle
from splitvla_shared.config import load_config
from splitvla_shared.errors import ConfigError, ObservationError
from splitvla_shared.spec import ModelSpec
from splitvla_shared.wire import inference_pb2 as pb
from tests.daemons import PATIENCE_S, Daemon, moving
from tests.fake_server import FakeServicer, description, serving

HZ = 20.0


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(20):
        PillowImage.fromarray(np.full((64, 64, 3), 12 * index, np.uint8)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def servicer(tiny_bundles: Path) -> FakeServicer:
    """Serves the tiny model's spec and answers with the token of the highest bin in every dimension."""
    spec = open_bundle(tiny_bundles / "edge", "edge").spec

    def answer(request: pb.InferRequest, _: grpc.ServicerContext) -> pb.InferReply:
        ids = [spec.action_vocab_size - 1] * request.action_dims
        return pb.InferReply(sequence=request.sequence, tokens=pb.ActionTokens(ids=ids))

    return FakeServicer(answer, description(spec))


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
        perception = min(daemon.children())  # a standby is begun later
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
    assert not all(record.perception_up for record in steps)
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


def test_without_a_server_it_waits_disarmed_until_it_is_ended(tiny_bundles: Path, frames: Path) -> None:
    with replaying(tiny_bundles / "edge", "127.0.0.1:9", frames) as daemon:
        missed = daemon.wait_for(lambda record: record.miss != "")
        daemon.process.send_signal(signal.SIGTERM)
        code, _, err = daemon.finish()
    assert code == 0, err
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
    [["control_hz=0"], ["duration_s=-1.0"], ["tls_ca='ca.pem'"], ["fallback.max_age_ms=-1"], ["fallbak.max_age_ms=1"]],
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


def start_script(script: str) -> Callable[[int], subprocess.Popen[str]]:
    """A perception process of a few lines; `fd` is its end of the channel."""

    def start(fd: int) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", f"fd = {fd}\n{script}"], pass_fds=(fd,), text=True)

    return start


def test_a_process_that_talks_nonsense_is_killed_and_started_again() -> None:
    script = "import socket, time\nsocket.socket(fileno=fd).send(b'nonsense')\ntime.sleep(60)"
    supervisor = Supervisor("perception", Channel.pair, start_script(script))
    supervisor.begin()
    until = time.monotonic() + PATIENCE_S
    while supervisor.generation < 2 and time.monotonic() < until:
        assert supervisor.receive() == []
        supervisor.send(Hint(1, 0, 0.3, 0.1, 0.5, True))
        time.sleep(0.01)
    supervisor.end()
    assert supervisor.generation == 2
    assert (supervisor.up, supervisor.pid) == (False, None)


def test_a_process_that_does_not_end_with_the_channel_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitvla_edge.supervisor._END_S", 0.2)
    processes = []

    def start(fd: int) -> subprocess.Popen[str]:
        processes.append(start_script("import time; time.sleep(60)")(fd))
        return processes[0]

    supervisor = Supervisor("perception", Channel.pair, start)
    supervisor.begin()
    until = time.monotonic() + PATIENCE_S
    while not supervisor.up and time.monotonic() < until:
        time.sleep(0.01)
    supervisor.end()
    assert processes[0].wait(PATIENCE_S) == -signal.SIGKILL


def test_a_standby_ends_with_the_daemon_and_one_that_died_is_no_standby() -> None:
    """What it begins says a word and stays; its standby is killed before it is needed."""
    begun: list[subprocess.Popen[str]] = []

    def start(fd: int) -> subprocess.Popen[str]:
        begun.append(start_script(_SPEAKS)(fd))
        return begun[-1]

    supervisor = Supervisor("perception", Channel.pair, start, standby=True)
    supervisor.begin()
    _until(lambda: supervisor.receive() is not None and len(begun) == 2)
    begun[1].kill()
    begun[1].wait(PATIENCE_S)
    begun[0].kill()
    _until(lambda: supervisor.receive() is not None and len(begun) == 4)
    assert (supervisor.pid, supervisor.generation, supervisor.restarts) == (begun[2].pid, 2, 1)
    supervisor.end()
    assert [process.poll() is None for process in begun] == [False] * 4


_SPEAKS = """
from splitvla_edge.channel import Channel, FrameSeen
channel = Channel.from_fd(fd)
channel.send(FrameSeen(1.0, 0))
channel.wait(60)
"""


def _until(what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not what() and time.monotonic() < until:
        time.sleep(0.01)
    assert what()


def test_an_exit_that_no_restart_can_mend_is_final() -> None:
    told: list[int | None] = []
    supervisor = Supervisor("perception", Channel.pair, start_script("raise SystemExit(3)"))
    supervisor.on_fatal = lambda: told.append(supervisor.fatal)
    supervisor.begin()
    supervisor._thread.join(PATIENCE_S)
    assert told == [3]
    assert (supervisor.generation, supervisor.restarts) == (1, 0)
    supervisor.end()


def test_the_other_end_sees_that_the_daemon_is_gone() -> None:
    """perception must not outlive a control process that was killed: nobody else holds its end of the channel."""
    ours, theirs = Channel.pair()
    script = "from splitvla_edge.channel import Channel\nChannel.from_fd(fd).wait(30)"
    process = start_script(script)(theirs.fileno())
    theirs.close()
    ours.close()
    assert process.wait(PATIENCE_S) == 0
