"""A robot of the user's own: the adapter of docs/robots.md drives a run, and what its driver does wrong is a fault."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitvla_edge.daemon.run import RunSettings
from splitvla_edge.doctor_checks import CHECKS, CheckResult, DoctorSettings, Patient, Verdict, examine
from splitvla_edge.fallback import Command, State
from splitvla_edge.robots import find_world, open_robot
from splitvla_edge.robots.action_space import ActionSpace, Kind
from splitvla_edge.robots.base import RobotState
from splitvla_edge.robots.camera import LiveCamera
from splitvla_edge.robots.device import DeviceRobot
from splitvla_edge.robots.kinds import RobotKind
from splitvla_edge.robots.own import own_kind
from splitvla_shared.bundle import open_bundle
from splitvla_shared.errors import ConfigError, RobotError
from tests.daemons import Daemon, gray_frames, moving
from tests.fake_server import highest_bins, serving

DOCS = (Path(__file__).resolve().parent.parent / "docs" / "robots.md").read_text(encoding="utf-8")
# The driver that the page leaves to the reader: writes down what it is told, and fails while a file is there.
DRIVER = """
import json, pathlib

class connect:
    def __init__(self, address):
        if pathlib.Path("off").exists():
            raise ConnectionRefusedError(f"{address} refused")
        self.log = open("told.jsonl", "a", buffering=1)
    def tell(self, what, *values):
        if pathlib.Path("unplugged").exists():
            raise OSError(5, "Input/output error")
        print(json.dumps([what, *values]), file=self.log)
    def enabled(self): return True
    def emergency(self): return pathlib.Path("pressed").exists()
    def opening(self): return 1.0
    def move_by(self, delta, gripper, latch): self.tell("move", delta, gripper, latch)
    def halt(self): self.tell("halt")
    def disconnect(self):
        global closed
        self.log.close()
        closed += 1

closed = 0
"""
# The page's robot, with recorded frames for a camera.
REPLAYED = """
import dataclasses
from splitvla_edge.robots.replay import ReplayCamera
REPLAYED = dataclasses.replace(ARM, camera=lambda settings, first: ReplayCamera(settings.replay, first))
"""
LIMITS = (0.03,) * 3 + (0.2,) * 3
COMMAND = Command(0, State.HOLD, "", (0.0,) * 7, 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder: my_arm.py as the page has it, and its driver. It is the working directory."""
    adapter = next(text for text in re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL) if "class MyArm" in text)
    (tmp_path / "my_arm.py").write_text(adapter + REPLAYED, encoding="utf-8")
    (tmp_path / "my_driver.py").write_text(DRIVER, encoding="utf-8")
    gray_frames(tmp_path / "frames")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_arm", "my_driver", "broken", "bare"):
        sys.modules.pop(name, None)


@pytest.fixture
def server(tiny_bundles: Path) -> Iterator[str]:
    """Answers with the token of the highest bin in every dimension."""
    with serving(highest_bins(open_bundle(tiny_bundles / "edge", "edge").spec)) as address:
        yield address


def _told(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "told.jsonl").read_text(encoding="utf-8").splitlines()]


def _run(tiny_bundles: Path, server: str, folder: Path) -> Daemon:
    options = (
        "--robot",
        "my_arm:REPLAYED",
        "--frames",
        "frames",
        "--loop",
        "--instruction",
        "lift",
        "--control-hz",
        "20",
    )
    return Daemon(tiny_bundles / "edge", server, folder / "run", *options, folder=folder)


def test_the_page_s_arm_moves_holds_when_its_driver_fails_and_is_stopped_at_the_end(
    tiny_bundles: Path, server: str, folder: Path
) -> None:
    with _run(tiny_bundles, server, folder) as daemon:
        daemon.wait_for(moving)
        (folder / "unplugged").touch()
        held = daemon.wait_for(lambda record: "Input/output error" in record.detail)
        assert held.detail == "robot my_arm:REPLAYED: apply raised OSError: [Errno 5] Input/output error"
        daemon.wait_for(lambda record: record.state == "HOLD")
        (folder / "unplugged").unlink()
        daemon.wait_for(moving)
        daemon.process.send_signal(signal.SIGTERM)
        code, _, said = daemon.finish()
    assert code == 0, said
    told = _told(folder)
    moves = [each for each in told if each[0] == "move"]
    assert any(not latch and any(delta) for _, delta, _, latch in moves)
    assert all(abs(value) <= limit for _, delta, *_ in moves for value, limit in zip(delta, LIMITS, strict=True))
    assert told[-1] == ["halt"]


def test_the_page_s_arm_is_halted_once_in_a_safe_stop_and_told_nothing_more_until_the_reset(
    tiny_bundles: Path, server: str, folder: Path
) -> None:
    with _run(tiny_bundles, server, folder) as daemon:
        daemon.wait_for(moving)
        (folder / "pressed").touch()
        first = daemon.wait_for(lambda record: record.state == "SAFE_STOP")
        daemon.wait_for(lambda record: record.tick >= first.tick + 5)
        before = _told(folder)
        (folder / "pressed").unlink()
        last = daemon.records[-1].tick
        daemon.wait_for(lambda record: record.tick >= last + 2)  # one that began without the e-stop
        daemon.process.send_signal(signal.SIGUSR1)
        daemon.wait_for(moving)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.finish()
    halts = [index for index, each in enumerate(_told(folder)) if each == ["halt"]]
    assert before[halts[0] :] == [["halt"]]
    assert len(halts) == 2, "in the stop, and at the end"


def test_a_robot_that_does_not_take_the_last_stop_is_said_aloud(tiny_bundles: Path, server: str, folder: Path) -> None:
    with _run(tiny_bundles, server, folder) as daemon:
        daemon.wait_for(moving)
        (folder / "unplugged").touch()
        daemon.process.send_signal(signal.SIGTERM)
        code, _, said = daemon.finish()
    assert code == RobotError.exit_code
    assert "the robot did not take the last stop: robot my_arm:REPLAYED: stop raised OSError" in said


def test_a_robot_that_is_off_ends_the_run_before_anything_moves(tiny_bundles: Path, server: str, folder: Path) -> None:
    (folder / "off").touch()
    with _run(tiny_bundles, server, folder) as daemon:
        code, _, said = daemon.finish()
    assert code == RobotError.exit_code
    assert "robot my_arm:REPLAYED: robot raised ConnectionRefusedError: 192.168.1.10 refused" in said
    assert "Traceback" not in said


# --- names ------------------------------------------------------------------------------------------------------------


def test_the_page_s_robot_is_found_in_the_working_directory(folder: Path) -> None:
    assert isinstance(own_kind("my_arm:ARM"), RobotKind)
    assert find_world("my_arm:ARM") is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_harm:ARM", "there is no module my_harm, neither in .* nor installed"),
        ("lab.my_arm:ARM", "there is no module lab.my_arm"),
        ("my_arm:LEG", "there is no LEG in it.*did you mean my_arm:ARM or my_arm:REPLAYED"),
        ("my_arm:MyArm", "MyArm there is a type"),
        ("my_driver:connect", "write connect = RobotKind"),
        ("broken:ARM", "importing broken failed: No module named 'rtde_that_is_not_there'; install it here"),
    ],
)
def test_what_is_wrong_with_a_name_is_said(folder: Path, name: str, said: str) -> None:
    (folder / "broken.py").write_text("import rtde_that_is_not_there", encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        own_kind(name)


def test_a_module_that_fails_while_it_is_imported_is_a_setting_that_is_wrong(folder: Path) -> None:
    (folder / "broken.py").write_text("1 / 0", encoding="utf-8")
    with pytest.raises(ConfigError, match="importing broken failed: ZeroDivisionError: division by zero"):
        own_kind("broken:ARM")


# --- what a driver may do ---------------------------------------------------------------------------------------------


class Arm:
    """An adapter around a driver that gives arrays."""

    action_space: object = ActionSpace(Kind.DELTA_EE, (-1.0,) * 7, (1.0,) * 7, gripper=6)

    def __init__(self, state: Callable[[], object]) -> None:
        self._state = state

    def read_state(self) -> object:
        return self._state()

    def apply(self, command: Command) -> None:
        raise TimeoutError("no answer")

    def stop(self) -> None:
        raise RobotError("in its own words")

    def close(self) -> None:
        raise ValueError("already closed")


def _device(state: Callable[[], object]) -> DeviceRobot:
    return DeviceRobot("arm", Arm(state))  # type: ignore[arg-type]


def test_arrays_of_a_driver_become_plain_numbers() -> None:
    position, opening = np.arange(7, dtype=np.float32), np.float32(0.5)
    given = RobotState(np.True_, np.False_, position, opening, np.False_)  # type: ignore[arg-type]
    state = _device(lambda: given).read_state()
    assert state == RobotState(True, False, (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0), 0.5, False)
    assert [type(value) for value in (state.ready, *state.position[:1], state.gripper)] == [bool, float, float]  # type: ignore[index]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (lambda: None, "read_state gave None; expected a RobotState"),
        (lambda: {"ready": True}, "expected a RobotState"),
        (lambda: RobotState(position=(0.0,) * 6), "a position of 6 numbers; its actions have 7"),
        (lambda: RobotState(position=("x",) * 7), "read_state raised ValueError"),  # type: ignore[arg-type]
        (lambda: 1 / 0, "read_state raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_state_that_is_none_is_a_fault_that_names_the_robot(state: Callable[[], object], said: str) -> None:
    with pytest.raises(RobotError, match=f"robot arm: {said}|{said}"):
        _device(state).read_state()


@pytest.mark.parametrize("position", [(), (None,) * 7, (0.0,) * 3])
def test_no_position_however_bad_hides_the_e_stop(position: Any) -> None:
    """An arm without power may measure nothing that makes sense, and a fault would only hold."""
    assert _device(lambda: RobotState(estop=True, position=position)).read_state() == RobotState(False, True)


def test_what_a_driver_raises_is_a_fault_and_its_own_words_stay() -> None:
    robot = _device(RobotState)
    with pytest.raises(RobotError, match="robot arm: apply raised TimeoutError: no answer"):
        robot.apply(COMMAND)
    with pytest.raises(RobotError, match=r"^in its own words$"):
        robot.stop()
    with pytest.raises(RobotError, match="robot arm: close raised ValueError: already closed"):
        robot.close()


def test_errors_of_our_own_tree_that_an_adapter_raises_are_faults_too() -> None:
    """As of a camera that uses our `check_image`: they would end the run as if its settings were wrong."""

    def wrong() -> object:
        raise ConfigError("42")

    with pytest.raises(RobotError, match="robot arm: read_state raised ConfigError: 42"):
        _device(wrong).read_state()


def test_an_adapter_without_an_action_space_is_closed_and_refused(folder: Path) -> None:
    (folder / "bare.py").write_text(
        "from my_arm import *\nclass Bare(MyArm):\n    action_space = None\n"
        "BARE = RobotKind(ARM.camera, lambda settings, run_dir: Bare('x'))\n"
    )
    with pytest.raises(RobotError, match="action_space is None"):
        open_robot(RunSettings(robot="bare:BARE"), 0.2, folder)
    assert sys.modules["my_driver"].closed == 1


def test_an_adapter_that_declares_no_action_space_is_refused() -> None:
    arm = Arm(RobotState)
    arm.action_space = None
    with pytest.raises(RobotError, match="action_space is None; expected an ActionSpace"):
        DeviceRobot("arm", arm)  # type: ignore[arg-type]


# --- doctor -----------------------------------------------------------------------------------------------------------


def _examined(check: str, clock: Callable[[], float] = time.monotonic, **run: Any) -> CheckResult:
    patient = Patient(DoctorSettings(RunSettings(**run)), clock=clock)
    return examine(patient, next(each for each in CHECKS if each.name == check))


def test_doctor_reads_the_robot_and_commands_nothing(folder: Path) -> None:
    found = _examined("robot", robot="my_arm:ARM")
    assert (found.verdict, found.found[:27]) == (Verdict.PASS, "delta_ee of 7 numbers; stat")
    assert _told(folder) == []
    (folder / "pressed").touch()
    found = _examined("robot", robot="my_arm:ARM")
    assert (found.verdict, found.found[:16]) == (Verdict.FAIL, "e-stop pressed; ")
    (folder / "off").touch()
    found = _examined("robot", robot="my_arm:ARM")
    assert (found.verdict, found.found) == (
        Verdict.FAIL,
        "robot my_arm:ARM: robot raised ConnectionRefusedError: 192.168.1.10 refused",
    )
    assert _examined("robot").verdict is Verdict.SKIP


def test_doctor_compares_what_the_robot_takes_with_what_the_model_gives(folder: Path, tiny_bundles: Path) -> None:
    (folder / "bare.py").write_text(
        "from my_arm import *\nclass Six(MyArm):\n"
        "    action_space = ActionSpace(Kind.DELTA_EE, (-1.0,) * 6, (1.0,) * 6)\n"
        "SIX = RobotKind(ARM.camera, lambda settings, run_dir: Six('x'))\n"
    )
    run = RunSettings(tiny_bundles / "edge", "localhost:1", robot="bare:SIX", unnorm_key="widowx_tiny")
    patient = Patient(DoctorSettings(run))
    found = {check.name: examine(patient, check) for check in CHECKS if check.name in ("robot", "bundle")}
    assert (found["robot"].verdict, found["bundle"].verdict) == (Verdict.PASS, Verdict.FAIL)
    assert found["bundle"].found == "the model gives 7 numbers an action, the robot takes 6"


def test_doctor_says_when_reading_the_robot_leaves_no_time_for_a_tick(folder: Path) -> None:
    assert _examined("robot", lambda: 0.0, robot="my_arm:ARM", control_hz=1000.0).verdict is Verdict.PASS
    times = iter(range(1000))
    found = _examined("robot", lambda: next(times) * 0.15, robot="my_arm:ARM")
    assert found.verdict is Verdict.FAIL
    assert found.found.endswith("read in 150.0 ms, at most 150.0; a tick has 200")


def test_doctor_looks_through_the_robot_s_own_camera(folder: Path) -> None:
    class Picture:
        def __init__(self) -> None:
            self.index = 0

        def read(self) -> tuple[bool, object]:
            self.index += 1
            return True, np.random.default_rng(self.index).integers(0, 255, (48, 64, 3), np.uint8)

        def release(self) -> None: ...

    arm = own_kind("my_arm:ARM")
    seeing = RobotKind(lambda run, first: LiveCamera(run.camera, first, open_capture=lambda _: Picture()), arm.robot)
    vars(sys.modules["my_arm"])["SEEING"] = seeing
    found = _examined("camera", robot="my_arm:SEEING")
    assert (found.verdict, found.found[:5]) == (Verdict.PASS, "64x48")
