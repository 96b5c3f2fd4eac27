"""The daemon behind `splitvla-edge run`: the control loop here, perception in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from splitvla_edge.daemon.black_box import BlackBox
from splitvla_edge.daemon.channel import Channel
from splitvla_edge.daemon.control import ControlLoop, Requests
from splitvla_edge.daemon.notices import Notices
from splitvla_edge.daemon.perception import STANDBY_OFF, STANDBY_STARTED, PerceptionSettings
from splitvla_edge.daemon.record import (
    STEPS_FILE,
    LineWriter,
    StepRecord,
    holds_run,
    make_unused,
    read_steps,
    summarise,
    write_run,
)
from splitvla_edge.daemon.supervisor import Supervisor, release_subcommand, start_subcommand
from splitvla_edge.fallback import FallbackSettings, Mode, State
from splitvla_edge.fallback.machine import FallbackMachine
from splitvla_edge.local.settings import LocalSettings, RecordingSettings
from splitvla_edge.policy_options import check_hedge
from splitvla_edge.robots import ROBOTS, instruction_of, open_robot
from splitvla_edge.robots.base import OpenedRobot
from splitvla_edge.robots.camera import CameraSettings
from splitvla_edge.robots.replay import ReplaySettings, commands_path
from splitvla_edge.robots.shadow import ShadowRobot
from splitvla_edge.robots.simulator.world import SimulatorSettings
from splitvla_shared.encoders import FP32
from splitvla_shared.errors import ConfigError, RobotError
from splitvla_shared.limits import check_instruction
from splitvla_shared.operator_lines import say

# SIGHUP: the operator's session is lost, and with it whoever watches the arm. SIGTSTP is Ctrl-Z beside a moving arm: it
# would freeze the process that ticks, with the arm's last command in force. SIGQUIT, Ctrl-\, stays the kernel's: of a
# driver that hangs in C no handler of ours is run any more, and a key must be left that ends it.
_STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
_SIGNALS = {**dict.fromkeys((signal.SIGINT, *_STOPS), "stop"), signal.SIGUSR1: "reset"}
# These come more than once, and must not keep the log from its end. Ctrl-C may, once the loop has ended.
_TO_THE_END = (*_STOPS, signal.SIGUSR1)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Everything that `run` can be told.

    bundle, server and instruction have no default, but a simulated robot knows its task's instruction. run_dir: of the
    step log, none = runs/<time>. accept_clipped: execute actions of which tokens had to be clipped. threads: of the
    encoder, none = all physical cores.
    encoder: fp32, or fp16 or int8 where the bundle has them. provider: auto, tensorrt, cuda or cpu.
    server: HOST:PORT, or several with commas between them, the preferred one first. hedge_ms: when a call without an
    answer is sent to the next server as well, none = never. mode: shadow decides and logs, and sends the robot nothing;
    forced-local asks no server, only the local policy acts.
    standby: a second perception process that takes over when the first one dies. off: none; started: it has begun, and
    loads the model when its turn comes; loaded: the model is loaded, in as much memory again.
    hang_s: perception is killed, and another one takes its place, when a call takes this much longer than the longest
    deadline; no encoder does.
    image_pipeline: none = the bundle's own. Names of pipelines and transforms: docs/images-and-actions.md.
    """

    bundle: Path | None = None
    server: str = ""
    robot: str = "replay"
    instruction: str = ""
    unnorm_key: str | None = None
    scheme: str = "bf16"
    control_hz: float = 5.0
    duration_s: float | None = None
    run_dir: Path | None = None
    accept_clipped: bool = False
    threads: int | None = None
    encoder: str = FP32
    provider: str = "auto"
    hedge_ms: float | None = None
    image_pipeline: str | None = None
    camera_transform: str = "none"
    action_transform: str = "none"
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    mode: Literal["normal", "shadow", "forced-local"] = "normal"
    standby: Literal["off", "started", "loaded"] = STANDBY_STARTED
    hang_s: float = 3.0
    fallback: FallbackSettings = field(default_factory=FallbackSettings)
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    camera: CameraSettings = field(default_factory=CameraSettings)
    simulator: SimulatorSettings = field(default_factory=SimulatorSettings)
    local: LocalSettings = field(default_factory=LocalSettings)
    recording: RecordingSettings = field(default_factory=RecordingSettings)

    def __post_init__(self) -> None:
        if not 0.1 <= self.control_hz <= 1000:
            raise ConfigError(f"control_hz is {self.control_hz}; expected 0.1..1000")
        check_hedge(self.hedge_ms, self.server or None)
        if not 1 <= self.hang_s <= 3600:
            raise ConfigError(f"hang_s is {self.hang_s}; expected 1..3600 seconds")
        if self.duration_s is not None and not self.duration_s > 0:
            raise ConfigError(f"duration_s is {self.duration_s}; expected above 0")
        if self.mode == "forced-local" and self.local.policy is None:
            raise ConfigError("mode forced-local needs a local policy; name one with --local-policy FILE.onnx")
        if len({path is None for path in (self.tls_ca, self.tls_cert, self.tls_key)}) > 1:
            raise ConfigError("tls_ca, tls_cert and tls_key belong together; set all three or none")

    @property
    def dt_s(self) -> float:
        """The control period."""
        return 1.0 / self.control_hz

    def perception(self, camera_memory: Path | None = None) -> PerceptionSettings:
        """The perception process's part. Raises ConfigError when a setting without default is not set."""
        if self.bundle is None or not self.server:
            raise ConfigError("bundle and server must be set: --bundle DIR --server HOST:PORT")
        shared = {
            each.name: getattr(self, each.name)
            for each in dataclasses.fields(PerceptionSettings)
            if each.name != "camera_memory"
        }
        return PerceptionSettings(**shared, camera_memory=camera_memory)


@dataclass(slots=True)
class _Outcome:
    """How the run stands. fatal: the exit code of what ended it. whole: it came to its end by itself."""

    state: State = State.INIT
    fatal: int | None = None
    whole: bool = False


def new_run_dir() -> Path:
    """runs/<time>, made here, where a run without a folder of its own goes. Raises ConfigError."""
    return make_unused(Path("runs") / time.strftime("%Y%m%d-%H%M%S"))


@contextlib.contextmanager
def run_folder(run_dir: Path | None) -> Iterator[Path]:
    """`run_dir`, or without one a new one, which goes again where nothing comes into it. Raises ConfigError."""
    folder = run_dir or new_run_dir()
    try:
        yield folder
    finally:
        if run_dir is None:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def run(settings: RunSettings) -> int:
    """Run until the camera is exhausted, the duration is over, or a signal of _SIGNALS; SIGUSR1 is the reset.

    Returns 0, RobotError's exit code when the run ended in SAFE_STOP or the robot did not take the last stop, or
    perception's own when it gave up for good.
    Raises ConfigError and ObservationError before anything moves; KeyboardInterrupt when a second SIGINT breaks off a
    call of the robot that does not return, or the end of the run.
    """
    if not settings.instruction:
        settings = dataclasses.replace(settings, instruction=instruction_of(settings.robot))
    check_instruction(settings.instruction)
    settings.perception()
    with run_folder(settings.run_dir) as run_dir:
        return _run_in(run_dir, settings)


def _run_in(run_dir: Path, settings: RunSettings) -> int:
    if holds_run(run_dir):
        raise ConfigError(f"{run_dir} holds a run already; name another folder or remove it")
    about = {"settings": dataclasses.asdict(settings), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "ended": False}
    outcome, requests = _Outcome(), Requests()
    with contextlib.ExitStack() as parts:
        robot = open_robot(settings, settings.dt_s, run_dir)
        parts.callback(_close, robot)
        log = LineWriter(run_dir / STEPS_FILE)
        parts.callback(log.close)
        write_run(run_dir, about)
        if settings.robot in ROBOTS and settings.mode != Mode.SHADOW.value:
            commands = commands_path(settings.replay, run_dir)
            _tell(f"robot {settings.robot}: commands are recorded in {commands}, nothing moves")
        with contextlib.ExitStack() as ending:
            ending.enter_context(_signals(requests, _TO_THE_END))
            ending.callback(lambda: _keep(run_dir, about, outcome, robot, log))  # when both are closed
            ending.push(parts.pop_all())
            _control(settings, robot, log, run_dir, requests, outcome)
            outcome.whole = True
    _print_summary(run_dir, robot)
    if outcome.fatal is not None:
        return outcome.fatal
    return RobotError.exit_code if outcome.state is State.SAFE_STOP else 0


def _close(robot: OpenedRobot) -> None:
    try:
        robot.close()
    except (RobotError, OSError) as error:  # OSError: of a terminal that is gone, where an adapter prints
        say(str(error))


def _keep(run_dir: Path, about: Mapping[str, Any], outcome: _Outcome, robot: OpenedRobot, log: LineWriter) -> None:
    """The end of run.json, or why it is missing: neither hides how the run ended."""
    ended = {"ended": True, "state": outcome.state.value, "lines_lost": log.dropped + log.failed}
    try:
        write_run(run_dir, {**about, **ended, "episodes": [episode.to_record() for episode in robot.episodes]})
    except ConfigError as error:
        say(str(error))
    if not outcome.whole:
        say(f"the run was broken off; its log is in {run_dir}")


def _print_summary(run_dir: Path, robot: OpenedRobot) -> None:
    try:
        summary = summarise(read_steps(run_dir / STEPS_FILE)).line()
    except ConfigError as error:
        summary = f"no summary: {error}"
    _tell(*(episode.line() for episode in robot.episodes), f"{run_dir}: {summary}")


def _tell(*lines: str) -> None:
    """On standard output, which may be gone or full. Flushed: what is left would fail the interpreter at its exit."""
    with contextlib.suppress(OSError):
        for line in lines:
            print(line, flush=True)


def _control(
    settings: RunSettings, robot: OpenedRobot, log: LineWriter, run_dir: Path, requests: Requests, outcome: _Outcome
) -> None:
    mode = Mode(settings.mode)
    machine = FallbackMachine(
        settings.fallback, robot.action_space, settings.dt_s, accept_clipped=settings.accept_clipped, mode=mode
    )
    box = BlackBox(machine, run_dir)
    driven = ShadowRobot(robot) if mode is Mode.SHADOW else robot
    told = settings.perception(robot.camera_memory).to_json()
    supervisor = Supervisor(
        "perception",
        Channel.pair,
        lambda fd: start_subcommand("perceive", told, fd),
        lambda process: release_subcommand(process, f"{loop.frames_seen}\n"),
        standby=settings.standby != STANDBY_OFF,
    )
    notices = Notices(sys.stderr, lambda: loop.stuck_since())
    hang_s = settings.fallback.deadline_max_ms / 1e3 + settings.hang_s
    loop = ControlLoop(machine, driven, supervisor, _emitter(log, notices), recorder=box, hang_s=hang_s)
    loop.requests = requests

    def give_up() -> None:
        requests.stop = True

    supervisor.on_fatal = give_up
    with contextlib.ExitStack() as ending:  # each of them, whatever breaks off another
        ending.callback(box.close)
        ending.callback(notices.close)
        ending.callback(supervisor.end)
        ending.callback(lambda: setattr(outcome, "state", machine.state))
        supervisor.begin()
        with _signals(requests, (signal.SIGINT,), loop.stuck_since):
            loop.run(settings.duration_s)
        if loop.stop_fault:
            say(f"the robot did not take the last stop: {loop.stop_fault}")
        outcome.fatal = supervisor.fatal or (RobotError.exit_code if loop.stop_fault else None)


def _emitter(log: LineWriter, notices: Notices) -> Callable[[StepRecord], None]:
    def emit(record: StepRecord) -> None:
        log.put(record.to_json)  # made into JSON by the writing thread
        notices.add(record)

    return emit


@contextlib.contextmanager
def _signals(
    requests: Requests, numbers: Sequence[signal.Signals], stuck_since: Callable[[], float | None] = lambda: None
) -> Iterator[None]:
    """Signals become flags of the loop; the previous handlers come back at the end.

    stuck_since: see ControlLoop. A loop that is stuck looks at no flag: a second Ctrl-C then breaks its call off.
    """

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and requests.stop and stuck_since() is not None:
            raise KeyboardInterrupt
        setattr(requests, _SIGNALS[signal.Signals(number)], True)
        if number == signal.SIGTSTP:  # which froze all in the foreground: the driver's processes must hear of its stop
            os.killpg(0, signal.SIGCONT)

    # A SIGHUP that is ignored already (nohup) stays so: this run is to outlive its session.
    outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    taken = [number for number in numbers if not (number is signal.SIGHUP and outlives)]
    before: dict[signal.Signals, Any] = {number: signal.signal(number, note) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
