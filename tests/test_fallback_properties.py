"""What holds for every history: the invariants of the fallback machine, by Hypothesis, on a simulated clock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitvla_edge.fallback import (
    TRANSITIONS,
    Asked,
    Chunk,
    Command,
    FallbackSettings,
    Miss,
    Outcome,
    Ready,
    Reply,
    State,
    TickInputs,
)
from splitvla_edge.fallback.machine import FallbackMachine
from splitvla_edge.robots.base import ActionSpace, Kind

SPACE = ActionSpace(Kind.DELTA_EE, (-0.1, -0.1, 0.0), (0.1, 0.1, 1.0), gripper=2, gripper_start=0.5)
SETTINGS = FallbackSettings()
QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])

numbers = st.one_of(st.floats(-0.3, 1.3), st.sampled_from([math.nan, math.inf, -math.inf, 1e300, 0.0]))
rows = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=4).map(tuple)


@dataclass(frozen=True)
class Happening:
    """One tick's worth of anything; ages and offsets are relative to the tick."""

    replies: tuple[tuple[str, int, int, float, float, tuple[tuple[float, ...], ...], int], ...]
    period: float
    frame_age: float | None
    calm: bool
    estop: bool
    reset: bool


def happenings() -> st.SearchStrategy[Happening]:
    reply = st.tuples(
        st.sampled_from(["asked", "chunk", "chunk", "chunk", "miss"]),
        st.integers(-2, 3),  # sequence, relative to the newest
        st.sampled_from([0, 0, 0, 0, -1, 1]),  # epoch, relative to the machine's
        st.floats(0.0, 0.6),  # age of the frame
        st.floats(-0.1, 0.6),  # deadline
        st.one_of(st.just(((0.05, -0.02, 1.0),)), rows),
        st.sampled_from([0, 0, 0, 1]),
    )
    return st.builds(
        Happening,
        replies=st.lists(reply, max_size=3).map(tuple),
        period=st.sampled_from([0.05, 0.05, 0.05, 0.1, 0.4]),
        frame_age=st.sampled_from([0.01, 0.01, 0.01, 0.01, 0.49, 0.6, None]),
        calm=st.sampled_from([True, True, True, True, False]),
        estop=st.sampled_from([False] * 15 + [True]),
        reset=st.sampled_from([False] * 7 + [True]),
    )


@dataclass(frozen=True)
class Tick:
    now: float
    inputs: TickInputs
    before: State
    command: Command


def play(history: list[Happening]) -> Iterator[Tick]:
    machine = FallbackMachine(SETTINGS, SPACE, 0.05)
    now, newest = 1000.0, 0
    for happening in history:
        now += happening.period
        replies: list[Reply] = []
        for kind, step, epoch, age, deadline, actions, clipped in happening.replies:
            sequence = max(0, newest + step)
            newest = max(newest, sequence)
            tag = machine.epoch + epoch
            if kind == "asked":
                replies.append(Asked(sequence, tag, now - age, now + deadline))
            elif kind == "miss":
                replies.append(Miss(sequence, Outcome.MISSED))
            else:
                replies.append(Chunk(sequence, tag, now - age, now, actions, clipped))
        inputs = TickInputs(
            replies=tuple(replies),
            frame_at=None if happening.frame_age is None else now - happening.frame_age,
            ready=Ready(3, 1, "f") if happening.calm or happening.estop else None,
            estop=happening.estop,
            reset=happening.reset,
            lateness_s=0.0,
        )
        before = machine.state
        yield Tick(now, inputs, before, machine.tick(now, inputs))


@QUICK
@given(st.lists(happenings(), max_size=40))
def test_the_invariants_hold_for_every_history(history: list[Happening]) -> None:
    """Numbers are those of the project's list of invariants."""
    gripper, executed, last_sequence, held_at, last_epoch = 0.5, set(), 0, -math.inf, 1
    epochs: dict[int, set[int]] = {}
    for number, tick in enumerate(play(history), 1):
        command, inputs = tick.command, tick.inputs
        assert command.tick == number  # 1
        assert len(command.values) == SPACE.dims
        assert all(map(math.isfinite, command.values))  # 2
        assert command.values == SPACE.bounded(command.values)  # 2
        for reply in inputs.replies:
            if isinstance(reply, Chunk):
                epochs.setdefault(reply.sequence, set()).add(reply.epoch)
        if command.motion:
            assert command.sequence is not None
            assert command.age_s is not None
            assert command.state is State.NOMINAL
            assert command.age_s <= 0.3 + 1e-6  # 3: for one action, and for the four of the longest chunk here
            assert (command.sequence, command.index) not in executed  # 4
            assert command.sequence >= last_sequence  # 5
            assert tick.now - command.age_s >= held_at + 0.1 - 1e-6  # 6
            assert command.epoch in epochs[command.sequence]  # 12
            executed.add((command.sequence, command.index))
            last_sequence, gripper = command.sequence, command.values[2]
        else:
            assert command.values == (0.0, 0.0, gripper)  # 7
        if command.state in (State.HOLD, State.SAFE_STOP):
            assert not command.motion  # 7
        if command.state is State.HOLD and tick.before is not State.HOLD:
            held_at = tick.now
        if inputs.estop:
            assert command.state is State.SAFE_STOP  # 9
        if tick.before is State.SAFE_STOP and not (inputs.reset and not inputs.estop):
            assert command.state is State.SAFE_STOP  # 10
        if inputs.frame_at is None or tick.now - inputs.frame_at > 0.5 + 1e-6:
            assert not command.motion  # 11
        assert command.epoch >= last_epoch
        last_epoch = command.epoch


@QUICK
@given(st.lists(happenings(), max_size=25))
def test_a_history_played_again_gives_the_same_commands(history: list[Happening]) -> None:
    """16: the machine has no clock and no chance, so the log of its inputs is the log of its commands."""
    once, again = list(play(history)), list(play(history))
    assert [tick.command for tick in once] == [tick.command for tick in again]


@QUICK
@given(st.lists(happenings(), max_size=25))
def test_every_transition_is_one_of_the_table_with_its_cause(history: list[Happening]) -> None:
    """16: a change of state always comes with the cause that the table gives for it."""
    for tick in play(history):
        if tick.command.state is not tick.before:
            causes = {
                t.cause for (state, _), t in TRANSITIONS.items() if (state, t.to) == (tick.before, tick.command.state)
            }
            assert tick.command.cause in causes


@dataclass(frozen=True)
class Link:
    """A simulated perception process: one call in flight, answers after `latency`, none between `down` and `up`."""

    latency: float
    down: float
    up: float


def drive(link: Link, seconds: float, dt: float = 0.05) -> list[tuple[float, Command]]:
    machine = FallbackMachine(SETTINGS, SPACE, dt)
    commands: list[tuple[float, Command]] = []
    inbox: list[tuple[float, Reply]] = []
    sequence, free_at = 0, 0.0
    for number in itertools.count():
        now = number * dt
        if now > seconds:
            return commands
        while free_at <= now:
            sequence += 1
            began, lost = free_at, link.down <= free_at < link.up
            took = SETTINGS.deadline_max_ms / 1e3 if lost else link.latency
            ends = began + took
            inbox.append((began, Asked(sequence, 1, began, began + 0.3)))
            answer: Reply = Chunk(sequence, 1, began, ends, ((0.05, 0.0, 1.0),))
            inbox.append((ends, Miss(sequence, Outcome.MISSED) if lost else answer))
            free_at = ends + 0.001
        arrived = [message for at, message in inbox if at <= now]
        inbox = [(at, message) for at, message in inbox if at > now]
        inputs = TickInputs(replies=tuple(arrived), frame_at=now, ready=Ready(3, 1, "f"))
        commands.append((now, machine.tick(now, inputs)))
    raise AssertionError("unreachable")


@QUICK
@given(st.floats(0.02, 0.14), st.floats(1.0, 2.0), st.floats(0.6, 4.0))
def test_the_robot_moves_again_soon_after_the_link_returns(latency: float, down: float, outage: float) -> None:
    """13: two answers, the settling, and the call that was lost last; never more than 25 ticks of 50 ms."""
    commands = drive(Link(latency, down, down + outage), down + outage + 2.0)
    held = [now for now, command in commands if command.state is State.HOLD]
    assert held, "an outage longer than a deadline is noticed"
    waited = [now for now, command in commands if command.state is State.WAIT and down + 0.6 < now < down + outage]
    assert not waited, "calls that are lost one after the other are no reason to wait"
    moved = [now for now, command in commands if command.motion and now > down + outage]
    assert moved[0] - (down + outage) <= 25 * 0.05
    assert all(command.state is not State.SAFE_STOP for _, command in commands)


def test_an_hour_of_answers_leaves_no_trace_in_memory() -> None:
    """15: nothing in the machine grows with time."""
    machine = FallbackMachine(SETTINGS, SPACE, 0.05)
    inputs = TickInputs(ready=Ready(3, 1, "f"))
    for number in range(1, 5000):
        now = number * 0.05
        chunk = Chunk(number, 1, now - 0.01, now, ((0.05, 0.0, 1.0),))
        machine.tick(now, replace(inputs, replies=(chunk,), frame_at=now))
    sized = [value for value in vars(machine).values() if hasattr(value, "__len__")]
    assert max(len(value) for value in sized) <= 256
