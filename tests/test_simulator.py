"""The simulated robot: its messages, its shared pictures, its loop, and what control sees when the world dies."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitvla_edge.daemon.datagrams import ChannelError
from splitvla_edge.daemon.episodes import Episode, Outcome
from splitvla_edge.fallback import Command, State
from splitvla_edge.robots.action_space import ActionSpace, Kind
from splitvla_edge.robots.simulator.memory import FrameMemory, MemoryCamera
from splitvla_edge.robots.simulator.messages import Act, Message, SimulatorChannel, Status, pack, unpack
from splitvla_edge.robots.simulator.process import SimulateSettings, Simulator
from splitvla_edge.robots.simulator.robot import SimulatedRobot
from splitvla_edge.robots.simulator.world import SimulatorSettings
from splitvla_shared.errors import ConfigError, RobotError
from splitvla_shared.nouns import Image
from tests.edge_fakes import Clock
from tests.sim_fakes import FakeProcess, FakeWorld

SPACE = ActionSpace(Kind.DELTA_EE, (-1.0, 0.0), (1.0, 1.0), gripper=1, gripper_start=1.0)
PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
EXAMPLES: list[Message] = [
    Act(7, 2, True, (0.5, -0.25)),
    Act(8, 2, False, (0.0, 1.0)),
    Act(9, 2, False, ()),
    Status(2, 31),
    Status(2, 32, (0.1, 0.6, 0.2)),
    Episode(2, 9, Outcome.SUCCESS, 31, 30, 1),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was_sent(message: Message) -> None:
    assert unpack(pack(message)) == message


@pytest.mark.parametrize("values", [(), (float("nan"),), (0.0,) * 65])
def test_an_action_that_no_arm_can_take_is_not_sent(values: tuple[float, ...]) -> None:
    with pytest.raises(ChannelError, match="can't be sent"):
        pack(Act(1, 0, True, values))


@given(st.binary(max_size=80) | st.sampled_from([pack(m)[:-1] for m in EXAMPLES]))
def test_other_bytes_are_an_error_or_a_message(data: bytes) -> None:
    try:
        message = unpack(data)
    except ChannelError:
        return
    assert pack(message) == data or isinstance(message, Act), "a flag may be any byte but 0"


def test_an_action_that_is_not_finite_is_not_received() -> None:
    data = pack(Act(1, 0, True, (0.0,)))[:-8] + struct.pack("<d", float("inf"))
    with pytest.raises(ChannelError, match="finite"):
        unpack(data)


@pytest.fixture
def memory() -> Iterator[FrameMemory]:
    memory = FrameMemory.create()
    yield memory
    memory.close()


def test_the_newest_picture_is_read_by_another_process(memory: FrameMemory) -> None:
    camera = MemoryCamera(FrameMemory.open(memory.path))
    assert (camera.newest(0.0), camera.latest(0.0)) == (None, None)
    for number in range(6):
        assert memory.write(PICTURE + number, 10.0 + number) == number
    assert camera.newest(0.0) == (15.0, 5)
    frame = camera.latest(0.0)
    assert frame is not None
    assert (frame.captured_at, frame.index) == (15.0, 5)
    assert np.array_equal(frame.image, PICTURE + 5)
    camera.close()


def test_pictures_go_on_counting_for_a_writer_that_was_started_again(memory: FrameMemory) -> None:
    memory.write(PICTURE, 1.0)
    again = FrameMemory.open(memory.path)
    assert again.write(PICTURE, 2.0) == 1
    again.close()
    assert memory.newest() == (2.0, 1)


def test_the_camera_is_exhausted_when_the_world_has_finished(memory: FrameMemory) -> None:
    camera = MemoryCamera(memory)
    memory.write(PICTURE, 1.0)
    assert not camera.exhausted(2.0)
    memory.finish()
    assert camera.exhausted(2.0)
    assert camera.newest(2.0) == (1.0, 0)


def test_a_torn_picture_is_never_handed_out(memory: FrameMemory) -> None:
    memory.write(PICTURE, 1.0)
    at = memory._map.find(PICTURE.tobytes())
    memory._map[at] ^= 1
    with pytest.raises(RobotError, match="damaged"):
        memory.read()


def test_a_picture_that_does_not_fit_and_a_memory_that_is_none_are_refused(
    memory: FrameMemory, tmp_path: object
) -> None:
    with pytest.raises(RobotError, match="does not fit"):
        memory.write(np.zeros((2000, 2000, 3), np.uint8), 0.0)
    with pytest.raises(RobotError, match="frame memory"):
        FrameMemory.open(memory.path.with_name("99999"))


class Bench:
    """A simulator over a FakeWorld, and the control process's end of its channel."""

    def __init__(self, memory: FrameMemory, world: FakeWorld, settings: SimulatorSettings) -> None:
        self.channel, theirs = SimulatorChannel.pair()
        self._theirs = SimulatorChannel(theirs)
        self.world = world
        self.kept: list[int] = []
        told = SimulateSettings("fake:lift", memory.path, 0.2, simulator=settings)
        self.simulator = Simulator(world, "lift", SPACE, memory, self._theirs, told, keep=self._keep)

    def _keep(self, tick: int, image: Image) -> None:
        self.kept.append(tick)

    def close(self) -> None:
        self.channel.close()
        self._theirs.close()

    def turn(self, *acts: Act) -> list[Message]:
        """What the simulator answers to these commands."""
        for act in acts:
            self.channel.send(act)
        self.simulator.turn()
        return self.channel.receive()


Start = Callable[..., Bench]


@pytest.fixture
def start(memory: FrameMemory) -> Iterator[Start]:
    """Begins a simulator: when its world is done, and SimulatorSettings."""
    benches: list[Bench] = []

    def start(done_after: int = 1000, **settings: Any) -> Bench:
        benches.append(Bench(memory, FakeWorld(done_after), SimulatorSettings(**settings)))
        return benches[-1]

    yield start
    for bench in benches:
        bench.close()


def test_every_command_is_one_period_of_the_world_and_gives_a_picture(start: Start, memory: FrameMemory) -> None:
    bench = start()
    assert bench.turn(Act(4, 0, True, (0.5, 0.0))) == [Status(0, 1)]
    assert bench.turn(Act(5, 0, False, (0.0, 0.0))) == [Status(0, 2)]
    assert bench.world.actions == [(0.5, 0.0), (0.0, 0.0)]
    assert bench.kept == [4, 5]
    frame = memory.read()
    assert frame is not None
    assert frame.image.max() == 2


def test_without_commands_the_world_goes_on_holding_with_the_gripper_where_it_was(start: Start) -> None:
    bench = start()
    bench.turn(Act(1, 0, True, (0.5, 0.25)))
    assert bench.turn() == [Status(0, 2)]
    assert bench.world.actions == [(0.5, 0.25), (0.0, 0.25)]


def test_the_world_stands_still_until_the_first_action_but_its_pictures_are_new(
    start: Start, memory: FrameMemory
) -> None:
    bench = start()
    assert bench.turn() == [Status(0, 0)]
    first = memory.newest()
    bench.turn(Act(1, 0, False, (0.0, 1.0)))
    assert bench.world.actions == []
    newest = memory.newest()
    assert first is not None
    assert newest is not None
    assert newest > first


def test_an_action_that_was_overtaken_is_not_executed_but_its_period_passes(start: Start) -> None:
    bench = start(steps=4)
    bench.turn(Act(0, 0, True, (0.4, 1.0)))
    answers = bench.turn(Act(1, 0, True, (0.5, 1.0)), Act(2, 0, True, (0.6, 1.0)), Act(3, 0, True, (0.7, 1.0)))
    assert bench.world.actions == [(0.4, 1.0), (0.0, 1.0), (0.0, 1.0), (0.7, 1.0)]
    assert bench.kept == [0, 3], "nobody waits for pictures that are old already"
    assert answers == [Episode(0, 0, Outcome.TIMEOUT, steps=4, motions=2, overtaken=2), Status(1, 0)]


def test_an_action_for_an_episode_that_has_ended_is_not_executed(start: Start) -> None:
    bench = start(2, episodes=2, seed=40)
    bench.turn(Act(1, 0, True, (0.5, 0.0)))
    ended, status = bench.turn(Act(2, 0, True, (0.5, 0.0)))
    assert ended == Episode(0, 40, Outcome.SUCCESS, steps=2, motions=2)
    assert status == Status(1, 0)
    assert bench.turn(Act(3, 0, True, (0.5, 0.0))) == [Status(1, 0)]
    assert len(bench.world.actions) == 2
    assert bench.world.resets == [("lift", 40), ("lift", 41)]


def test_after_the_last_episode_the_world_stands_still(start: Start, memory: FrameMemory) -> None:
    bench = start(1)
    bench.turn(Act(1, 0, True, (0.5, 0.0)))
    assert memory.finished
    last = memory.newest()
    assert bench.turn(Act(2, 1, True, (0.5, 0.0))) == [Status(1, 0)]
    assert memory.newest() == last, "perception sees that nothing new will come"
    assert len(bench.world.actions) == 1
    assert bench.world.resets == [("lift", 0)]


def test_a_run_until_done_ends_with_the_first_success(start: Start, memory: FrameMemory) -> None:
    bench = start(2, episodes=5, until_done=True)
    bench.turn(Act(1, 0, True, (0.5, 0.0)))
    assert bench.turn(Act(2, 0, True, (0.5, 0.0)))[-1] == Status(5, 0)
    assert memory.finished


def test_a_world_that_is_done_before_any_action_waits_for_one(start: Start) -> None:
    bench = start(0)
    assert bench.turn() == [Status(0, 0)]
    assert isinstance(bench.turn(Act(1, 0, True, (0.5, 0.0)))[0], Episode)


def test_an_episode_whose_first_action_never_comes_is_over_too(start: Start) -> None:
    bench = start(steps=3, episodes=2, start_s=1.0)
    said = [message for _ in range(8) for message in bench.turn()]
    ended = [(at, message) for at, message in enumerate(said) if isinstance(message, Episode)]
    assert ended == [
        (4, Episode(0, 0, Outcome.TIMEOUT)),  # 5 periods of 0.2 s are the run's start
        (8, Episode(1, 1, Outcome.TIMEOUT)),
    ]
    assert bench.world.actions == []


@pytest.fixture
def robot(memory: FrameMemory) -> tuple[SimulatedRobot, FakeProcess, Clock]:
    process, clock = FakeProcess(), Clock()
    return SimulatedRobot(SPACE, SimulatorSettings(seed=5), 0.2, process, memory, clock=clock), process, clock


Parts = tuple[SimulatedRobot, FakeProcess, Clock]


def test_the_tick_that_sees_a_new_episode_is_not_ready_and_the_next_one_is(robot: Parts) -> None:
    arm, process, _ = robot
    process.says = [Status(0, 9)]
    assert arm.read_state().ready
    done = Episode(0, 5, Outcome.SUCCESS, 10, 10)
    process.says = [done, Status(1, 0)]
    assert not arm.read_state().ready
    assert arm.read_state().ready
    assert arm.episodes == (done,)


def test_commands_carry_the_episode_that_control_knows_of(robot: Parts) -> None:
    arm, process, _ = robot
    process.says = [Status(3, 9)]
    arm.read_state()
    arm.apply(Command(12, State.NOMINAL, "action executed", (0.5, 0.0), 1, motion=True))
    arm.stop()
    assert process.told == [Act(12, 3, True, (0.5, 0.0)), Act(12, 3, False, (0.0, 1.0))]


def test_the_arms_measured_position_reaches_the_machine(robot: Parts, start: Start) -> None:
    bench = start(9)
    bench.world.position = (0.1, 0.6, 0.2)
    (status,) = bench.turn()
    simulated, process, _ = robot
    process.says = [status]
    assert simulated.read_state().position == (0.1, 0.6, 0.2)
    process.says = [Status(0, 0)]
    assert simulated.read_state().position is None, "an arm that nobody measures is never measured still"


def test_a_silent_simulator_is_a_fault_of_the_robot(robot: Parts) -> None:
    arm, process, clock = robot
    process.says = [Status(0, 0)]
    arm.read_state()
    clock.now += 0.9
    assert arm.read_state().ready
    clock.now += 0.2
    with pytest.raises(RobotError, match=r"said nothing for 1\.1 s"):
        arm.read_state()


def test_a_dead_simulator_is_a_fault_until_the_new_one_stands_and_its_episode_is_lost(robot: Parts) -> None:
    arm, process, _ = robot
    process.says = [Status(0, 9)]
    arm.read_state()
    process.up = False
    with pytest.raises(RobotError, match="gone"):
        arm.read_state()
    assert arm.next_episode == 1, "the arm has moved: that episode can't be taken up"
    process.up, process.generation = True, 2
    with pytest.raises(RobotError, match="does not stand yet"):
        arm.read_state()
    assert arm.episodes == (Episode(0, 5, Outcome.LOST, 9),)
    process.says = [Status(1, 0)]
    arm.read_state()
    assert arm.read_state().ready


def test_an_episode_in_which_nothing_moved_begins_again_after_a_crash(robot: Parts) -> None:
    arm, process, _ = robot
    process.says = [Status(2, 0)]
    arm.read_state()
    process.generation = 2
    with pytest.raises(RobotError):
        arm.read_state()
    assert arm.next_episode == 2
    assert arm.episodes == ()


def test_the_robot_hands_its_camera_over_and_ends_its_process(robot: Parts, memory: FrameMemory) -> None:
    arm, process, _ = robot
    assert arm.camera_memory == memory.path
    process.says = [Episode(0, 5, Outcome.TIMEOUT, 60, 60)]
    arm.close()
    assert process.ended
    assert len(arm.episodes) == 1, "what was said last is not lost"


@pytest.mark.parametrize(
    "settings", [{"seed": -1}, {"episodes": 0}, {"steps": 0}, {"start_s": 0.0}, {"max_speed_m_s": 0.0}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="simulator"):
        SimulatorSettings(**settings)  # type: ignore[arg-type]


def test_an_episode_stands_in_run_json_and_comes_back() -> None:
    episode = Episode(1, 7, Outcome.SUCCESS, 20, 18, 1)
    assert episode.to_record()["outcome"] == "SUCCESS"
    assert Episode.from_record(episode.to_record()) == episode
