"""What `doctor` looks at: one function a check, each of which ends in PASS, FAIL or SKIP with a reason.

Rules of this file: a check measures what a run will do, with the run's own code; it may raise any error of the tree,
which is its FAIL; what it opened it leaves in the Patient for the checks behind it, which SKIP without it.
"""

from __future__ import annotations

import contextlib
import enum
import json
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image as PilImage

from splitvla_edge.daemon.run import RunSettings
from splitvla_edge.encoding.encoder import OnnxEncoder, encoders_of
from splitvla_edge.encoding.probe import INSTRUCTIONS, check_encoder, check_sees
from splitvla_edge.link.grpc_link import GrpcLink, check_addresses
from splitvla_edge.link.security import Security
from splitvla_edge.model import STATISTICS_FILE, check_accepted, check_same_model, read_edge_model, read_ladder
from splitvla_edge.policy import EdgePolicy
from splitvla_edge.robots import ROBOTS, find_world, open_camera, open_robot
from splitvla_edge.robots.action_space import Kind
from splitvla_edge.robots.base import Camera, OpenedRobot
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.errors import RobotError, SplitVLAError
from splitvla_shared.nouns import Observation
from splitvla_shared.rungs import Rung

T = TypeVar("T")
_CAMERA_FIRST_S, _CAMERA_WATCH_S, _CAMERA_LOOK_S = 5.0, 2.0, 0.002
_ENCODE_RUNS, _DESCRIBE_RUNS, _ACT_RUNS, _STATE_READS = 5, 20, 3, 20
_TICK_SHARE = 0.5  # of a control period, that reading the robot may take at most
_CONNECT_S, _ACT_DEADLINE_S = 5.0, 60.0  # generous: a slow answer is to be measured, not to be cut off


class Verdict(enum.Enum):
    PASS = "PASS"
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """values: the numbers that were measured, units in their names. remedy: one line, empty unless it failed."""

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""
    values: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check returns. good is its verdict; values as in CheckResult."""

    good: bool
    found: str
    values: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class DoctorSettings:
    """What is examined: all that this run would use. budget_s: what an action may take, None = what the run allows."""

    run: RunSettings
    budget_s: float | None = None


def _open_robot(run: RunSettings, folder: Path) -> OpenedRobot:
    return open_robot(run, run.dt_s, folder)


@dataclass(slots=True)
class Patient:
    """The parts under examination. Owned by one `doctor` run; the checks fill it in their order."""

    settings: DoctorSettings
    open_camera: Callable[[RunSettings], Camera] = open_camera
    open_robot: Callable[[RunSettings, Path], OpenedRobot] = _open_robot
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    bundle: Bundle | None = None
    tables: CodecTables | None = None
    rungs: tuple[Rung, ...] = ()
    encoder: OnnxEncoder | None = None
    link: GrpcLink | None = None
    robot_dims: int | None = None
    same_model: bool = False
    acts: bool = False

    @property
    def run(self) -> RunSettings:
        return self.settings.run

    @property
    def budget_ms(self) -> float:
        """What a run allows an action: its call's deadline, and the age that its frame may have."""
        if self.settings.budget_s is not None:
            return self.settings.budget_s * 1e3
        chunk_length = 1 if self.bundle is None else self.bundle.spec.chunk_length
        fallback = self.run.fallback
        return min(fallback.max_age_s(self.run.dt_s, chunk_length) * 1e3, fallback.deadline_max_ms)


class Skip(Exception):  # noqa: N818 - an outcome, not an error
    """This check can't be made; the message says why."""


def check_camera(patient: Patient) -> Finding:
    """Frames a second over two seconds, and whether the picture ever changes: a live sensor's noise always does."""
    if patient.run.robot == "replay":
        raise Skip("neither --device nor --robot was given")
    if find_world(patient.run.robot) is not None:
        raise Skip("a simulated robot draws its own pictures, during a run")
    camera = patient.open_camera(patient.run)
    try:
        frames, pictures, shape = _watch(patient, camera)
    finally:
        camera.close()
    rate = (len(frames) - 1) / (max(frames.values()) - min(frames.values())) if len(frames) > 1 else 0.0
    found = f"{shape[1]}x{shape[0]} at {rate:.1f} frames/s, {pictures} different pictures in {len(frames)} frames"
    frozen = pictures < 2
    return Finding(not frozen, f"frozen: {found}" if frozen else found, (("camera_fps", rate),))


def check_robot(patient: Patient) -> Finding:
    """Connects and reads its state, as every tick does, twenty times. Nothing is commanded."""
    run = patient.run
    if run.robot in ROBOTS or find_world(run.robot) is not None:
        raise Skip(f"robot {run.robot!r} is none that could move")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="splitvla-doctor-"))
        robot = patient.open_robot(run, Path(folder))
        stack.callback(robot.close)
        times_ms = _timed_ms(patient, _STATE_READS, robot.read_state)
        state, space = robot.read_state(), robot.action_space
    patient.robot_dims = space.dims
    median, slowest, period_ms = float(np.median(times_ms)), max(times_ms), run.dt_s * 1e3
    wrong = "e-stop pressed; " if state.estop else "not ready; " if not state.ready else ""
    if space.kind is Kind.ABSOLUTE and space.set_point_at(state.position) is None:
        where = "gives no position" if state.position is None else "gives a position outside the limits"
        wrong += f"read_state {where}, and targets are absolute: it could not begin to move; "
    found = f"{wrong}{space.kind.value} of {space.dims} numbers; state read in {median:.1f} ms, "
    found += f"at most {slowest:.1f}; a tick has {period_ms:.0f}"
    good = not wrong and slowest < period_ms * _TICK_SHARE
    return Finding(good, found, (("robot_read_ms", median), ("robot_read_max_ms", slowest)))


def check_bundle(patient: Patient) -> Finding:
    """Every file has the bytes that it was written with, and the bundle can send what was asked for."""
    run = patient.run.perception()
    bundle = open_bundle(run.bundle, "edge")
    patient.tables, patient.rungs = read_ladder(bundle, run.scheme)
    dims = read_edge_model(bundle, run.unnorm_key or _any_key(bundle)).statistics.dims
    patient.bundle = bundle  # once it is good: a mistyped key must not be told as a link that is slow
    if patient.robot_dims not in (None, dims):
        return Finding(False, f"the model gives {dims} numbers an action, the robot takes {patient.robot_dims}")
    found = f"{bundle.spec.name}, fingerprint {bundle.spec.fingerprint[:16]}, encoders {', '.join(encoders_of(bundle))}"
    found += f", payloads {', '.join(rung.name for rung in patient.rungs)}"
    return Finding(True, found)


def check_provider(patient: Patient) -> Finding:
    """The hardware that passed a real inference against the CPU, and why others did not."""
    run = patient.run
    bundle = _needed(patient.bundle, "bundle")
    encoder = OnnxEncoder(bundle, run.threads, variant=run.encoder, provider=run.provider, tables=patient.tables)
    difference = check_encoder(encoder, bundle, run.encoder)
    patient.encoder = encoder
    found = f"{run.encoder} on {encoder.selection.describe()}; golden probe off by {difference:.2%}"
    return Finding(True, found, (("probe_difference", difference),))


def check_encode_time(patient: Patient) -> Finding:
    """Median of five images, after the warm-up that opening the encoder made."""
    encoder, bundle = _needed(patient.encoder, "encoder"), _needed(patient.bundle, "bundle")
    image = np.full((bundle.spec.image_size,) * 2 + (3,), 128, np.uint8)
    times_ms = _timed_ms(patient, _ENCODE_RUNS, lambda: encoder.embed(image))
    median = float(np.median(times_ms))
    budget_ms = patient.budget_ms
    found = f"median {median:.1f} ms, {min(times_ms):.1f} to {max(times_ms):.1f}; an action may take {budget_ms:.0f} ms"
    return Finding(median < budget_ms, found, (("encode_ms", median),))


def check_health(patient: Patient) -> Finding:
    """The gRPC health service, which answers while the model is busy; of every server. The first is examined on."""
    run, said = patient.run, []
    security = Security.from_files(run.tls_ca, run.tls_cert, run.tls_key)
    for address in check_addresses(run.server):
        link = GrpcLink(address, security=security)
        with contextlib.ExitStack() as on_error:
            on_error.callback(link.close)
            link.describe(_CONNECT_S)  # waits for a connection, as a run does
            said.append((address, link.health(_CONNECT_S)))
            if patient.link is None:
                patient.link = link
                on_error.pop_all()
    found = ", ".join(status if len(said) == 1 else f"{address} {status}" for address, status in said)
    return Finding(all(status == "SERVING" for _, status in said), found)


def check_fingerprint(patient: Patient) -> Finding:
    """The server holds the other half of this model, accepts this scheme, and is not going away."""
    link, bundle = _needed(patient.link, "server"), _needed(patient.bundle, "bundle")
    server = link.describe(_CONNECT_S)
    check_same_model(bundle.spec, server.spec)
    check_accepted(patient.rungs[0].scheme, server)
    patient.same_model = True
    found = f"{server.spec.fingerprint[:16]} on both sides; backbone {server.precision}, server {server.version}"
    return Finding(not server.draining, f"{found}; draining: it is going away" if server.draining else found)


def check_round_trip(patient: Patient) -> Finding:
    """Twenty empty calls, one after the other."""
    link = _needed(patient.link, "server")
    times_ms = _timed_ms(patient, _DESCRIBE_RUNS, lambda: link.describe(_CONNECT_S))
    p50, p99 = (float(value) for value in np.percentile(times_ms, (50, 99)))
    good = p99 < patient.budget_ms
    return Finding(
        good, f"p50 {p50:.1f} ms, p99 {p99:.1f} ms of {_DESCRIBE_RUNS}", (("rtt_p50_ms", p50), ("rtt_p99_ms", p99))
    )


def check_action(patient: Patient) -> Finding:
    """Whole actions, the first of which only warms up: how long they take, and what the link carries meanwhile.

    As in a scene that changes: none may take over the last one's answer as its draft, or its frame as a reference.
    """
    policy = _policy(patient)
    noise = np.random.default_rng(0)
    chunks = []
    for step in range(_ACT_RUNS + 1):
        policy.handshake(_CONNECT_S)
        coarse = noise.integers(0, 256, (12, 16, 3), np.uint8)  # smooth, as pictures are: a codec carries no noise
        image = np.asarray(PilImage.fromarray(coarse).resize((640, 480)))
        observation = Observation(step, (image,), INSTRUCTIONS[0], patient.clock())
        chunks.append(policy.act(observation, deadline_s=_ACT_DEADLINE_S))
    patient.acts = True
    total_ms = float(np.median([chunk.stages.total_ms for chunk in chunks[1:]]))
    network_ms = float(np.median([chunk.stages.network_ms for chunk in chunks[1:]]))
    size, budget_ms = chunks[1].wire_bytes, patient.budget_ms
    rate = size * 8 / max(network_ms, 1e-3) / 1e3
    found = (
        f"{total_ms:.0f} ms of {budget_ms:.0f}, without a draft, as a key frame; {size:,} B of "
        f"{policy.sent_as} in {network_ms:.1f} ms: {rate:.0f} Mbit/s, round trip included"
    )
    return Finding(total_ms < budget_ms, found, (("action_ms", total_ms), ("link_mbit_s", rate)))


def check_sight(patient: Patient) -> Finding:
    """A black and a white image must not mean the same to the model."""
    if not patient.acts:
        raise Skip("needs an action")
    policy, bundle = _policy(patient), _needed(patient.bundle, "bundle")
    check_sees(policy, bundle.spec.image_size, deadline_s=_ACT_DEADLINE_S)
    return Finding(True, "a black and a white image give different tokens")


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    examine: Callable[[Patient], Finding]
    remedy: str


_ALLOW = "or allow more: fallback.max_age_ms (chunk_max_age_ms) and deadline_max_ms"
CHECKS: tuple[Check, ...] = (
    Check("camera", check_camera, "check cable and power, that no other program holds it, and --device"),
    Check("robot", check_robot, "check power, network and e-stop of the robot, and its adapter; see docs/robots.md"),
    Check("bundle", check_bundle, "copy edge/ again, or split again; see --scheme, --unnorm-key and the action space"),
    Check("encoder", check_provider, "use --provider cpu --encoder fp32; if that fails too, copy the bundle again"),
    Check(
        "encode time",
        check_encode_time,
        "use --encoder int8, or a GPU provider; stop other programs; see fallback.max_age_ms",
    ),
    Check("server", check_health, "start splitvla-cloud serve; check address, firewall, and TLS on both sides"),
    Check(
        "fingerprint", check_fingerprint, "serve the cloud/ folder of the same split; else connect to another server"
    ),
    Check("round trip", check_round_trip, "use a wired or less crowded link, or a nearer server"),
    Check("action", check_action, f"use a smaller --scheme (int8, int4), a faster link or server; {_ALLOW}"),
    Check("sight", check_sight, "run splitvla-cloud verify; do not let this model move a robot"),
)


def examine(patient: Patient, check: Check) -> CheckResult:
    """One check to its verdict; errors of the tree are its FAIL."""
    try:
        finding = check.examine(patient)
    except Skip as reason:
        return CheckResult(check.name, Verdict.SKIP, str(reason))
    except SplitVLAError as error:
        return CheckResult(check.name, Verdict.FAIL, str(error), check.remedy)
    verdict = Verdict.PASS if finding.good else Verdict.FAIL
    return CheckResult(check.name, verdict, finding.found, "" if finding.good else check.remedy, finding.values)


def _needed(part: T | None, name: str) -> T:
    if part is None:
        raise Skip(f"needs the {name}")
    return part


def _policy(patient: Patient) -> EdgePolicy:
    encoder, link = _needed(patient.encoder, "encoder"), _needed(patient.link, "server")
    bundle = _needed(patient.bundle, "bundle")
    if not patient.same_model:
        raise Skip("needs the same model on both sides")
    run = patient.run
    model = read_edge_model(bundle, run.unnorm_key or _any_key(bundle))
    policy = EdgePolicy(
        model,
        encoder,
        link,
        robot="doctor",
        image_pipeline=run.image_pipeline,
        camera_transform=run.camera_transform,
        action_transform=run.action_transform,
        tables=patient.tables,
        rungs=patient.rungs,
    )
    policy.handshake(_CONNECT_S)
    return policy


def _any_key(bundle: Bundle) -> str | None:
    """Tokens do not depend on the statistics, so any will do where the bundle has several."""
    keys = json.loads((bundle.path / STATISTICS_FILE).read_text(encoding="utf-8"))
    return next(iter(keys), None)


def _timed_ms(patient: Patient, count: int, work: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(count):
        started = patient.clock()
        work()
        times.append((patient.clock() - started) * 1e3)
    return times


def _watch(patient: Patient, camera: Camera) -> tuple[dict[int, float], int, tuple[int, ...]]:
    """Capture time by frame number, how many pictures differed, and the last one's shape. Raises RobotError."""
    frames: dict[int, float] = {}
    pictures: set[int] = set()
    shape: tuple[int, ...] = ()
    end = patient.clock() + _CAMERA_FIRST_S
    while (now := patient.clock()) < end:
        frame = camera.latest(now)
        if frame is not None and frame.index not in frames:
            if not frames:
                end = now + _CAMERA_WATCH_S
            frames[frame.index] = frame.captured_at
            pictures.add(zlib.crc32(frame.image.tobytes()))
            shape = frame.image.shape
        patient.pause(_CAMERA_LOOK_S)
    if not frames:
        raise RobotError(f"the camera gave no frame in {_CAMERA_FIRST_S:.0f} s; is it plugged in?")
    return frames, len(pictures), shape
