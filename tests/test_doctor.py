"""doctor: each thing that can be wrong is a FAIL with a remedy, what depends on it is skipped, nothing is hidden."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from splitvla_edge.__main__ import main
from splitvla_edge.daemon.run import RunSettings
from splitvla_edge.doctor import diagnose, print_table, render_json, well
from splitvla_edge.doctor_checks import CHECKS, CheckResult, DoctorSettings, Patient, Verdict, examine
from splitvla_edge.fallback import Command, FallbackSettings
from splitvla_edge.robots.action_space import ActionSpace, Kind
from splitvla_edge.robots.base import Frame, RobotState
from splitvla_shared.bundle import open_bundle
from splitvla_shared.errors import ConfigError, RobotError
from splitvla_shared.wire import inference_pb2 as pb
from splitvla_shared.wire import inference_pb2_grpc as rpc
from tests.fake_server import FakeServicer, answer, description

PASS, FAIL, SKIP = Verdict.PASS, Verdict.FAIL, Verdict.SKIP
NAMES = [check.name for check in CHECKS]


class Server:
    """A real gRPC server of the tiny bundle's model whose answers depend on the picture, and its health service."""

    def __init__(self, bundle: Path) -> None:
        spec = open_bundle(bundle, "edge").spec
        self.servicer = FakeServicer(self._see, description(spec))
        self.health = health.HealthServicer()
        self.health.set("splitvla.v1.Inference", health_pb2.HealthCheckResponse.SERVING)
        self.blind = False
        self.asked: list[pb.InferRequest] = []

    def _see(self, request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:
        self.asked.append(request)
        reply = answer(request)
        seen = 0 if self.blind else sum(request.cameras[0].tensor.data[:4096]) % 200
        del reply.tokens.ids[:]
        reply.tokens.ids.extend([780 + seen] * request.action_dims)
        return reply


@pytest.fixture
def server(tiny_bundles: Path) -> Server:
    return Server(tiny_bundles / "edge")


@pytest.fixture
def address(server: Server) -> Iterator[str]:
    from concurrent import futures

    running = grpc.server(futures.ThreadPoolExecutor(4))
    rpc.add_InferenceServicer_to_server(server.servicer, running)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(server.health, running)
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield f"127.0.0.1:{port}"
    running.stop(None).wait(5)


@pytest.fixture
def settings(tiny_bundles: Path, address: str) -> DoctorSettings:
    return DoctorSettings(RunSettings(tiny_bundles / "edge", address, threads=1), budget_s=30.0)


def _with(settings: DoctorSettings, **run: Any) -> DoctorSettings:
    return dataclasses.replace(settings, run=dataclasses.replace(settings.run, **run))


def _by_name(results: tuple[CheckResult, ...]) -> dict[str, CheckResult]:
    assert [result.check for result in results] == NAMES
    return {result.check: result for result in results}


def _verdicts(results: tuple[CheckResult, ...]) -> list[Verdict]:
    return [result.verdict for result in results]


def test_a_healthy_robot_passes_and_every_number_is_there(settings: DoctorSettings) -> None:
    results = diagnose(Patient(settings))
    assert _verdicts(results) == [SKIP] * 2 + [PASS] * 8, results
    assert well(results)
    values = {name for result in results for name, _ in result.values}
    assert values == {"probe_difference", "encode_ms", "rtt_p50_ms", "rtt_p99_ms", "action_ms", "link_mbit_s"}
    found = _by_name(results)
    assert "fp32 on " in found["encoder"].found
    assert found["server"].found == "SERVING"
    assert "65,540 B of bf16" in found["action"].found
    assert not any(result.remedy for result in results)


def test_a_server_that_is_down_fails_once_and_skips_the_rest(settings: DoctorSettings, free_port: int) -> None:
    down = _with(settings, server=f"127.0.0.1:{free_port}")
    results = diagnose(Patient(down))
    assert _verdicts(results) == [SKIP, SKIP, PASS, PASS, PASS, FAIL, SKIP, SKIP, SKIP, SKIP]
    found = _by_name(results)
    assert "no server at" in found["server"].found
    assert "splitvla-cloud serve" in found["server"].remedy
    assert (found["action"].found, found["sight"].found) == ("needs the server", "needs an action")
    assert not well(results)


@pytest.fixture
def free_port(monkeypatch: pytest.MonkeyPatch) -> int:
    from benchmarks.processes import free_port as unused

    monkeypatch.setattr("splitvla_edge.doctor_checks._CONNECT_S", 0.5)
    return unused()


def test_a_blind_model_fails_by_that_name(settings: DoctorSettings, server: Server) -> None:
    server.blind = True
    found = _by_name(diagnose(Patient(settings)))["sight"]
    assert (found.verdict, found.found.split(":")[0]) == (FAIL, "blind")
    assert "do not let this model move a robot" in found.remedy


def test_another_model_on_the_server_fails_by_the_field(settings: DoctorSettings, server: Server) -> None:
    spec = dataclasses.replace(
        open_bundle(settings.run.perception().bundle, "edge").spec, language_sha256="other"
    ).sealed()
    server.servicer.described = description(spec)
    results = diagnose(Patient(settings))
    found = _by_name(results)
    assert found["fingerprint"].verdict is FAIL
    assert "language_sha256" in found["fingerprint"].found
    assert found["round trip"].verdict is PASS
    assert (found["action"].found, found["sight"].found) == ("needs the same model on both sides", "needs an action")


def test_a_server_that_is_not_serving_fails(settings: DoctorSettings, server: Server) -> None:
    server.health.set("splitvla.v1.Inference", health_pb2.HealthCheckResponse.NOT_SERVING)
    found = _by_name(diagnose(Patient(settings)))["server"]
    assert (found.verdict, found.found) == (FAIL, "NOT_SERVING")


def test_a_draining_server_fails(settings: DoctorSettings, server: Server) -> None:
    server.servicer.described.draining = True
    found = _by_name(diagnose(Patient(settings)))["fingerprint"]
    assert found.verdict is FAIL
    assert "draining" in found.found


def test_what_takes_longer_than_an_action_may_fails(settings: DoctorSettings) -> None:
    found = _by_name(diagnose(Patient(dataclasses.replace(settings, budget_s=1e-6))))
    assert [name for name in NAMES if found[name].verdict is FAIL] == ["encode time", "round trip", "action"]
    assert "--encoder int8" in found["encode time"].remedy


def test_a_damaged_bundle_fails_and_the_link_is_examined_all_the_same(settings: DoctorSettings, tmp_path: Path) -> None:
    results = diagnose(Patient(_with(settings, bundle=tmp_path)))
    assert _verdicts(results) == [SKIP, SKIP, FAIL, SKIP, SKIP, PASS, SKIP, PASS, SKIP, SKIP]


def test_a_provider_that_is_not_there_fails_with_the_reason(settings: DoctorSettings) -> None:
    found = _by_name(diagnose(Patient(_with(settings, encoder="int8"))))["encoder"]
    assert found.verdict is FAIL
    assert "has no encoder 'int8'" in found.found


def test_names_of_images_and_actions_are_examined_as_a_run_would_use_them(settings: DoctorSettings) -> None:
    for given in ({"image_pipeline": "evil"}, {"camera_transform": "rotate9"}, {"action_transform": "livero"}):
        found = _by_name(diagnose(Patient(_with(settings, **given))))["action"]
        assert found.verdict is FAIL, given
        assert repr(next(iter(given.values()))) in found.found


def test_what_is_mistyped_is_no_verdict_on_link_or_model(settings: DoctorSettings) -> None:
    found = _by_name(diagnose(Patient(_with(settings, unnorm_key="brige_orig"))))
    assert [name for name in NAMES if found[name].verdict is FAIL] == ["bundle"]
    assert "unknown unnorm key 'brige_orig'" in found["bundle"].found
    found = _by_name(diagnose(Patient(_with(settings, image_pipeline="evil"))))
    assert (found["sight"].verdict, found["sight"].found) == (SKIP, "needs an action")


def test_a_model_that_answers_nothing_is_not_called_blind(settings: DoctorSettings, server: Server) -> None:
    server.servicer.infer = lambda request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "loading")
    found = _by_name(diagnose(Patient(settings)))
    assert (found["action"].verdict, found["sight"].verdict, found["sight"].found) == (FAIL, SKIP, "needs an action")


def test_an_action_may_take_what_the_run_allows_it(settings: DoctorSettings) -> None:
    """300 ms for single actions by default: a slower model would pass here and never move there."""
    patient = Patient(dataclasses.replace(settings, budget_s=None))
    assert patient.budget_ms == 300.0
    for age, deadline, allowed in ((900.0, 900.0, 900.0), (900.0, 500.0, 500.0), (300.0, 900.0, 300.0)):
        longer = FallbackSettings(max_age_ms=age, deadline_max_ms=deadline)
        patient = Patient(dataclasses.replace(_with(settings, fallback=longer), budget_s=None))
        assert patient.budget_ms == allowed


def test_a_spare_server_that_is_down_is_found_before_it_is_needed(settings: DoctorSettings, free_port: int) -> None:
    spare = f"127.0.0.1:{free_port}"
    found = _by_name(diagnose(Patient(_with(settings, server=f"{settings.run.server},{spare}"))))
    assert (found["server"].verdict, found["action"].verdict) == (FAIL, PASS)
    assert f"no server at {spare}" in found["server"].found


def test_actions_are_timed_without_what_an_earlier_one_left_behind(settings: DoctorSettings, server: Server) -> None:
    """A host that is slow in a scene that changes would pass with the same picture and its own answer as a draft."""
    found = _by_name(diagnose(Patient(settings)))["action"]
    asked = server.asked[:4]
    assert len({request.cameras[0].tensor.data for request in asked}) == 4
    assert not any(request.draft_tokens for request in asked)
    assert "without a draft, as a key frame" in found.found


# --- robot ------------------------------------------------------------------------------------------------------------


class StillArm:
    """An arm of absolute targets in -1..1 that is measured to be at `position`."""

    camera_memory, episodes = None, ()
    action_space = ActionSpace(Kind.ABSOLUTE, (-1.0,), (1.0,), max_speed=(0.5,))

    def __init__(self, position: tuple[float, ...] | None) -> None:
        self.position = position

    def read_state(self) -> RobotState:
        return RobotState(position=self.position)

    def apply(self, command: Command) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("position", "verdict", "said"),
    [
        (None, FAIL, "read_state gives no position, and targets are absolute: it could not begin to move; "),
        ((2.0,), FAIL, "read_state gives a position outside the limits, and targets are absolute"),
        ((0.5,), PASS, "absolute of 1 numbers"),
    ],
)
def test_an_arm_of_absolute_targets_must_be_measured(
    settings: DoctorSettings, position: tuple[float, ...] | None, verdict: Verdict, said: str
) -> None:
    patient = Patient(_with(settings, robot="arm:ARM"), open_robot=lambda run, folder: StillArm(position))
    found = examine(patient, CHECKS[NAMES.index("robot")])
    assert (found.verdict, found.found[: len(said)]) == (verdict, said)


# --- camera -----------------------------------------------------------------------------------------------------------


class FakeClock:
    """Seconds that pass only in pauses."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


class FakeCamera:
    """Thirty frames a second of the clock; `picture` makes the one with a number, or raises."""

    def __init__(self, clock: FakeClock, picture: Any) -> None:
        self.clock, self.picture, self.closed = clock, picture, False
        self.started = clock.now

    def newest(self, now: float) -> None:
        return None

    def latest(self, now: float) -> Frame | None:
        index = int((now - self.started) * 30)
        picture = self.picture(index)
        return None if picture is None else Frame(picture, self.started + index / 30, index)

    def exhausted(self, now: float) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


def _examine_camera(settings: DoctorSettings, picture: Any) -> CheckResult:
    clock = FakeClock()
    cameras: list[FakeCamera] = []

    def open_camera(_: RunSettings) -> FakeCamera:
        cameras.append(FakeCamera(clock, picture))
        return cameras[0]

    patient = Patient(_with(settings, robot="camera"), open_camera, clock=clock, pause=clock.pause)
    result = examine(patient, CHECKS[NAMES.index("camera")])
    assert cameras[0].closed
    return result


def test_a_live_camera_tells_its_frame_rate(settings: DoctorSettings) -> None:
    result = _examine_camera(settings, lambda index: np.full((48, 64, 3), index % 251, np.uint8))
    assert (result.verdict, result.found[:22]) == (PASS, "64x48 at 30.0 frames/s")
    assert dict(result.values)["camera_fps"] == pytest.approx(30, abs=0.1)


def test_a_camera_that_repeats_one_picture_is_frozen(settings: DoctorSettings) -> None:
    result = _examine_camera(settings, lambda index: np.zeros((48, 64, 3), np.uint8))
    assert (result.verdict, result.found[:6]) == (FAIL, "frozen")


def test_a_camera_without_frames_fails(settings: DoctorSettings) -> None:
    result = _examine_camera(settings, lambda index: None)
    assert result.verdict is FAIL
    assert "gave no frame in 5 s" in result.found


def test_a_camera_that_is_not_there_fails_with_a_remedy(settings: DoctorSettings) -> None:
    def gone(index: int) -> None:
        raise RobotError("camera 0 gives no frames; is it plugged in and free?")

    result = _examine_camera(settings, gone)
    assert result.verdict is FAIL
    assert "--device" in result.remedy


# --- what is printed --------------------------------------------------------------------------------------------------


def test_the_table_hides_nothing() -> None:
    long = "because " * 40 + "[the end]"
    stream = io.StringIO()
    print_table([CheckResult("camera", FAIL, long, "mend " * 30 + "it")], stream)
    words = " ".join(stream.getvalue().replace("│", " ").split())
    assert words.count("because") == 40
    assert words.count("mend") == 30
    assert "[the" in words  # square brackets are text, not markup
    assert "0 PASS, 1 FAIL, 0 SKIP" in words


def test_json_is_one_object(settings: DoctorSettings) -> None:
    results = (CheckResult("round trip", PASS, "p50", values=(("rtt_p50_ms", 1.5),)), CheckResult("sight", SKIP, "no"))
    assert json.loads(render_json(results)) == {
        "ok": True,
        "checks": [
            {"check": "round trip", "verdict": "PASS", "found": "p50", "remedy": "", "values": {"rtt_p50_ms": 1.5}},
            {"check": "sight", "verdict": "SKIP", "found": "no", "remedy": "", "values": {}},
        ],
    }


def test_the_command_ends_with_zero_only_when_nothing_failed(
    settings: DoctorSettings, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "doctor",
        "--bundle",
        str(settings.run.bundle),
        "--server",
        settings.run.server,
        "--budget-s",
        "30",
        "--json",
    ]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    server.blind = True
    assert main(command) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert main([*command, "--scheme", "jpeg"]) == 1
    assert "'jpeg'" in json.loads(capsys.readouterr().out)["checks"][2]["found"]
    assert main([*command, "--budget-s", "nan"]) == ConfigError.exit_code
