"""The black box: what the machine saw and did in the last two minutes, in bounded memory, written on a SAFE_STOP.

Layout of the file, little-endian: magic, then blocks of a length as u32 and so many bytes: the header (JSON: settings,
action space), then for each segment the machine's state at its beginning (JSON), the number of its ticks as u32, and a
block for each tick. A tick is its inputs and its command; replies are packed as in channel.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from splitvla_edge.daemon.channel import pack, unpack
from splitvla_edge.daemon.datagrams import ChannelError
from splitvla_edge.fallback import Command, FallbackSettings, LocalChunk, Mode, Ready, State, TickInputs
from splitvla_edge.fallback.machine import FallbackMachine
from splitvla_edge.fallback.snapshot import restore, take
from splitvla_edge.robots.action_space import ActionSpace, Kind
from splitvla_shared.errors import ConfigError
from splitvla_shared.operator_lines import say

MAGIC = b"SVLABOX3"  # another number whenever the machine has other state: an older one says so, and is not "damaged"
_SEGMENT_S = 60.0
_SEGMENTS = 3  # the newest may have just begun: two whole minutes are always there
_MAX_BYTES = 64 << 20
_STATES = list(State)
_TICK = struct.Struct("<ddddHBHHB")  # now, frame, lateness, gripper, position, flags, messages, contract, values
_COMMAND = struct.Struct("<QBBqid")  # tick, state, flags, sequence, index, age
_LENGTH = struct.Struct("<I")
# What reading a changed file, or the machine on a state that it never had, may raise.
_DAMAGE = (
    *(ChannelError, struct.error, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, AssertionError, RecursionError),
)


@dataclass(slots=True)
class _Segment:
    began: float
    state: bytes
    ticks: list[bytes]
    size: int = 0


class BlackBox:
    """Owned by the control process; `before` and `after` frame every tick. Mutable state: the last segments.

    written: files so far. A disk that refuses costs the file, never a tick.
    """

    def __init__(self, machine: FallbackMachine, folder: Path) -> None:
        self.written = 0
        self._machine, self._folder = machine, folder
        self._header = _header(machine)
        self._segments: deque[_Segment] = deque()
        self._size = 0
        self._said: tuple[Ready | None, LocalChunk | None] = (None, None)
        self._state = machine.state
        self._writer: threading.Thread | None = None

    def before(self, now: float) -> None:
        """Before the machine is ticked: a new segment begins with its state."""
        if not self._segments or now - self._segments[-1].began >= _SEGMENT_S:
            if len(self._segments) == _SEGMENTS:
                self._drop_oldest()
            self._segments.append(_Segment(now, json.dumps(take(self._machine)).encode(), []))
            self._said = (None, None)

    def after(self, now: float, inputs: TickInputs, command: Command) -> None:
        """After it: keep the tick; on entering SAFE_STOP write the file, on a thread of its own."""
        data = _write_tick(now, inputs, command, self._said)
        self._said = (inputs.ready, inputs.local)
        segment = self._segments[-1]
        segment.ticks.append(data)
        segment.size += len(data)
        self._size += len(data)
        while self._size > _MAX_BYTES and len(self._segments) > 1:
            self._drop_oldest()
        before, self._state = self._state, command.state
        if command.state is State.SAFE_STOP is not before:
            self._write()

    def close(self, timeout_s: float = 2.0) -> None:
        """Wait for a file that is being written."""
        if self._writer is not None:
            self._writer.join(timeout_s)

    def _drop_oldest(self) -> None:
        self._size -= self._segments.popleft().size

    def _write(self) -> None:
        self.written += 1
        path = self._folder / f"black-box-{self.written}.bin"
        segments = [(each.state, tuple(each.ticks)) for each in self._segments]
        self._writer = threading.Thread(target=_write_file, args=(path, self._header, segments), daemon=True)
        self._writer.start()


def _write_file(path: Path, header: bytes, segments: list[tuple[bytes, tuple[bytes, ...]]]) -> None:
    try:
        with path.open("wb") as file:
            file.write(MAGIC + _LENGTH.pack(len(header)) + header)
            for state, ticks in segments:
                file.write(_LENGTH.pack(len(state)) + state + _LENGTH.pack(len(ticks)))
                file.writelines(_LENGTH.pack(len(tick)) + tick for tick in ticks)
    except OSError as error:
        say(f"{path}: {error.strerror}; there is no black box of this stop")


@dataclass(frozen=True, slots=True)
class Replayed:
    """A tick of a black box, and what the machine does with it now."""

    now: float
    recorded: Command
    again: Command

    @property
    def same(self) -> bool:
        return self.recorded == self.again


def replay(path: Path) -> Iterator[Replayed]:
    """Run the machine on every recorded tick. Raises ConfigError when the file is no whole black box."""
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise ConfigError(f"{path} is no black box of this version; `run` writes black-box-N.bin on a SAFE_STOP")
    try:
        yield from _replay(_Reader(data[len(MAGIC) :]))
    except _DAMAGE as error:
        raise ConfigError(f"{path} is damaged, or this version's machine has a bug: {error!r:.200}") from error


def print_replay(path: Path, out: TextIO) -> int:
    """A line for each change of state and for each command that differs; 0 when none does. Raises ConfigError."""
    ticks = different = 0
    state: State | None = None
    for tick in replay(path):
        ticks += 1
        if tick.again.state is not state:
            state = tick.again.state
            print(f"{tick.now:14.3f} s  tick {tick.again.tick:>7}  {state.value:<9} {tick.again.cause}", file=out)
        if not tick.same:
            different += 1
            print(f"{tick.now:14.3f} s  tick {tick.again.tick:>7}  DIFFERENT: recorded {tick.recorded}", file=out)
    print(f"{ticks} ticks played again, {different} commands differ", file=out)
    return 1 if different else 0


def _replay(reader: _Reader) -> Iterator[Replayed]:
    header = json.loads(reader.block())
    while reader.more():
        machine = _machine(header)
        restore(machine, json.loads(reader.block()))
        said: tuple[Ready | None, LocalChunk | None] = (None, None)
        for _ in range(reader.number()):
            now, inputs, recorded = _read_tick(reader.block(), said)
            said = (inputs.ready, inputs.local)
            again = machine.tick(now, inputs)
            machine.hint()  # it draws the probes' jitter
            yield Replayed(now, dataclasses.replace(recorded, cause=again.cause, epoch=again.epoch), again)


class _Reader:
    """Mutable state: what is left of the file."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def more(self) -> bool:
        return len(self._data) > 0

    def number(self) -> int:
        (value,) = _LENGTH.unpack(self._data[: _LENGTH.size])
        self._data = self._data[_LENGTH.size :]
        return int(value)

    def block(self) -> bytes:
        length = self.number()
        if length > len(self._data):
            raise ValueError("it ends in the middle of a block")
        block, self._data = bytes(self._data[:length]), self._data[length:]
        return block


def _header(machine: FallbackMachine) -> bytes:
    """What is not in the machine's state."""
    space = dataclasses.asdict(machine.space) | {"kind": machine.space.kind.value}
    about = {"settings": dataclasses.asdict(machine.settings), "space": space, "dt_s": machine.dt_s}
    return json.dumps({**about, "mode": machine.mode.value}).encode()


def _machine(header: dict[str, Any]) -> FallbackMachine:
    space: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in header["space"].items()
    }
    space["kind"] = Kind(space["kind"])
    return FallbackMachine(
        FallbackSettings(**header["settings"]),
        ActionSpace(**space),
        header["dt_s"],
        mode=Mode(header["mode"]),
    )


def _write_tick(
    now: float, inputs: TickInputs, command: Command, said: tuple[Ready | None, LocalChunk | None]
) -> bytes:
    """What perception said before (ready, local) is not written again."""
    ready, local = inputs.ready, inputs.local
    new = [each for each, old in ((ready, said[0]), (local, said[1])) if each is not old and each not in (None, old)]
    messages = [pack(each) for each in (*new, *inputs.replies)]
    contract, position = inputs.contract.encode()[:60_000], inputs.position or ()
    flags = (
        inputs.enabled
        | inputs.robot_ready << 1
        | inputs.estop << 2
        | inputs.reset << 3
        | (ready is None) << 4
        | (local is None) << 5
        | (inputs.position is not None) << 6
    )
    head = _TICK.pack(
        now,
        _number(inputs.frame_at),
        inputs.lateness_s,
        _number(inputs.gripper),
        len(position),
        flags,
        len(messages),
        len(contract),
        len(command.values),
    )
    did = _COMMAND.pack(
        command.tick,
        _STATES.index(command.state),
        command.motion | command.stop << 1,
        -1 if command.sequence is None else command.sequence,
        -1 if command.index is None else command.index,
        _number(command.age_s),
    )
    numbers = struct.pack(f"<{len(position) + len(command.values)}d", *position, *command.values)
    return b"".join((head, did, numbers, contract, *(_LENGTH.pack(len(each)) + each for each in messages)))


def _read_tick(data: bytes, said: tuple[Ready | None, LocalChunk | None]) -> tuple[float, TickInputs, Command]:
    now, frame_at, lateness_s, gripper, places, flags, messages, contract, values = _TICK.unpack_from(data)
    tick, state, did, sequence, index, age_s = _COMMAND.unpack_from(data, _TICK.size)
    at = _TICK.size + _COMMAND.size
    numbers = struct.unpack_from(f"<{places + values}d", data, at)
    at += 8 * len(numbers)
    reader = _Reader(memoryview(data)[at + contract :])
    said_now = [unpack(reader.block()) for _ in range(messages)]
    ready = next((each for each in said_now if isinstance(each, Ready)), said[0])
    local = next((each for each in said_now if isinstance(each, LocalChunk)), said[1])
    enabled, robot_ready, estop, reset, no_ready, no_local, placed = (bool(flags >> bit & 1) for bit in range(7))
    inputs = TickInputs(
        replies=tuple(each for each in said_now if not isinstance(each, Ready | LocalChunk)),  # type: ignore[misc]
        local=None if no_local else local,
        frame_at=_value(frame_at),
        ready=None if no_ready else ready,
        enabled=enabled,
        robot_ready=robot_ready,
        estop=estop,
        contract=data[at : at + contract].decode(),
        reset=reset,
        lateness_s=lateness_s,
        gripper=_value(gripper),
        position=numbers[:places] if placed else None,
    )
    command = Command(
        tick=tick,
        state=_STATES[state],
        cause="",
        values=numbers[places:],
        epoch=0,
        motion=bool(did & 1),
        stop=bool(did >> 1 & 1),
        sequence=None if sequence < 0 else sequence,
        index=None if index < 0 else index,
        age_s=_value(age_s),
    )
    return now, inputs, command


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _value(number: float) -> float | None:
    return None if math.isnan(number) else number
