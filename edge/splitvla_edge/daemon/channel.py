"""What control and perception say to each other over their socket pair (datagrams.py): small fixed messages.

Layout, little-endian: one byte for the kind, then the fields in the order of the class; a text is its length as u16
and UTF-8. Both ends are of one version and on one machine, so that monotonic times may travel.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from splitvla_edge.daemon.datagrams import ChannelError, Datagrams, inherited_socket, socket_pair
from splitvla_edge.fallback import Asked, Chunk, Hint, LocalChunk, Miss, Outcome, Ready
from splitvla_shared.nouns import ServerHints, StageTimes

MAX_CHUNK, MAX_DIMS, MAX_RUNGS, MAX_TEXT_BYTES = 256, 64, 32, 512
_MAX_MESSAGE = 1024 + MAX_CHUNK * MAX_DIMS * 8


@dataclass(frozen=True, slots=True)
class FrameSeen:
    """Perception to control: the camera is alive."""

    captured_at: float
    index: int


@dataclass(frozen=True, slots=True)
class Contract:
    """Perception to control: the two machines do not hold the same model."""

    text: str


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Perception to control: the camera will never give another frame."""


Message = Hint | Ready | FrameSeen | Asked | Chunk | Miss | Contract | Exhausted | LocalChunk

_HINT = struct.Struct("<BIQdddBBdB")
_READY = struct.Struct("<BHH16sB")
_FRAME = struct.Struct("<BdQ")
_ASKED = struct.Struct("<BQIddB")
_CHUNK = struct.Struct("<BQIddHHIQBIdB10d")
_MISS = struct.Struct("<BQBH")
_TEXT = struct.Struct("<BH")
_EXHAUSTED = struct.Struct("<B")
_LOCAL = struct.Struct("<BQdHHdI")

# Not by dataclasses.astuple, which copies field by field.
_asked_fields, _stage_fields = (attrgetter(*(field.name for field in fields(each))) for each in (Asked, StageTimes))


def pack(message: Message) -> bytes:
    """The bytes of one message. Raises ChannelError when a field is out of its bounds."""
    kind, write, _ = _KINDS[type(message)]
    try:
        return write(kind, message)
    except (struct.error, ValueError) as error:
        raise ChannelError(f"message {type(message).__name__} can't be sent: {error}") from error


def unpack(data: bytes) -> Message:
    """The message of these bytes. Raises ChannelError on anything else."""
    read = _READERS.get(data[0]) if data else None
    if read is None:
        raise ChannelError(f"a message of {len(data)} bytes has an unknown kind; both processes must be one version")
    try:
        return read(data)
    except (struct.error, ValueError) as error:
        raise ChannelError(f"a message of kind {data[0]} and {len(data)} bytes is damaged: {error}") from error


class Channel(Datagrams[Message]):
    """The pair between control and perception."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, pack, unpack, _MAX_MESSAGE)

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """This process's end, and the socket whose fd goes to the other process."""
        ours, theirs = socket_pair()
        return cls(ours), theirs

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """The end that the parent process handed over. Raises ChannelError when `fd` is no such socket."""
        return cls(inherited_socket(fd))


def _times(*values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError("a time is not finite")


def _write_text(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:MAX_TEXT_BYTES].decode("utf-8", "ignore").encode()


def _read_text(data: bytes, length: int) -> str:
    if length != len(data) or length > MAX_TEXT_BYTES:
        raise ValueError(f"a text of {len(data)} bytes says that it has {length}")
    return data.decode("utf-8")  # UnicodeDecodeError is a ValueError


def _write_hint(kind: int, m: Hint) -> bytes:
    _times(m.max_age_s, m.deadline_min_s, m.deadline_max_s, m.gap_s)
    return _HINT.pack(kind, *m)


def _read_hint(data: bytes) -> Hint:
    _, epoch, floor, max_age_s, low_s, high_s, enabled, rung, gap_s, local = _HINT.unpack(data)
    _times(max_age_s, low_s, high_s, gap_s)
    if not (0.0 <= low_s <= high_s and max_age_s >= 0.0 and gap_s >= 0.0 and {enabled, local} <= {0, 1}):
        raise ValueError("deadlines make no sense")
    return Hint(epoch, floor, max_age_s, low_s, high_s, bool(enabled), rung, gap_s, bool(local))


def _write_ready(kind: int, m: Ready) -> bytes:
    if len(m.ladder) > MAX_RUNGS:
        raise ValueError(f"a ladder of {len(m.ladder)} rungs")
    head = _READY.pack(kind, m.dims, m.chunk_length, m.fingerprint[:16].encode("ascii"), len(m.ladder))
    return head + struct.pack(f"<{len(m.ladder)}Q", *m.ladder)


def _read_ready(data: bytes) -> Ready:
    _, dims, length, fingerprint, rungs = _READY.unpack(data[: _READY.size])
    if not (1 <= dims <= MAX_DIMS and 1 <= length <= MAX_CHUNK and rungs <= MAX_RUNGS):
        raise ValueError(f"chunks of {length} x {dims}, {rungs} rungs")
    ladder = struct.unpack(f"<{rungs}Q", data[_READY.size :])
    return Ready(dims, length, fingerprint.rstrip(b"\0").decode("ascii"), ladder)


def _write_frame(kind: int, m: FrameSeen) -> bytes:
    _times(m.captured_at)
    return _FRAME.pack(kind, m.captured_at, m.index)


def _read_frame(data: bytes) -> FrameSeen:
    _, captured_at, index = _FRAME.unpack(data)
    _times(captured_at)
    return FrameSeen(captured_at, index)


def _write_asked(kind: int, m: Asked) -> bytes:
    _times(m.captured_at, m.deadline_at)
    return _ASKED.pack(kind, *_asked_fields(m))


def _read_asked(data: bytes) -> Asked:
    _, sequence, epoch, captured_at, deadline_at, rung = _ASKED.unpack(data)
    _times(captured_at, deadline_at)
    return Asked(sequence, epoch, captured_at, deadline_at, rung)


def _write_chunk(kind: int, m: Chunk) -> bytes:
    length, dims, values = _write_rows(m.actions)
    hints = m.hints
    _times(m.captured_at, m.finished_at, hints.busy)
    head = _CHUNK.pack(
        kind, m.sequence, m.epoch, m.captured_at, m.finished_at, length, dims, m.clipped, m.wire_bytes, m.rung,
        hints.queued, hints.busy, int(hints.draining), *_stage_fields(m.stages),
    )  # fmt: skip
    return head + values


def _read_chunk(data: bytes) -> Chunk:
    """Actions may hold numbers that are not finite: judging them is the machine's part."""
    head = _CHUNK.unpack(data[: _CHUNK.size])
    _, sequence, epoch, captured_at, finished_at, length, dims, clipped, wire_bytes, rung = head[:10]
    queued, busy, draining = head[10:13]
    _times(captured_at, finished_at, busy, *head[13:])
    if draining not in (0, 1):
        raise ValueError("a flag that is neither 0 nor 1")
    rows = _read_rows(data[_CHUNK.size :], length, dims)
    hints, stages = ServerHints(queued, busy, bool(draining)), StageTimes(*head[13:])
    return Chunk(sequence, epoch, captured_at, finished_at, rows, clipped, stages, wire_bytes, rung, hints)


def _write_rows(rows: tuple[tuple[float, ...], ...]) -> tuple[int, int, bytes]:
    length, dims = len(rows), len(rows[0]) if rows else 0
    if not (1 <= length <= MAX_CHUNK and 1 <= dims <= MAX_DIMS):
        raise ValueError(f"a chunk of {length} x {dims}")
    values = [value for row in rows for value in row]
    if len(values) != length * dims:
        raise ValueError("the rows of a chunk have different lengths")
    return length, dims, struct.pack(f"<{length * dims}d", *values)


def _read_rows(data: bytes, length: int, dims: int) -> tuple[tuple[float, ...], ...]:
    if not (1 <= length <= MAX_CHUNK and 1 <= dims <= MAX_DIMS):
        raise ValueError(f"a chunk of {length} x {dims}")
    values = struct.unpack(f"<{length * dims}d", data)
    return tuple(values[i : i + dims] for i in range(0, len(values), dims))


def _write_local(kind: int, m: LocalChunk) -> bytes:
    length, dims, values = _write_rows(m.actions)
    _times(m.captured_at, m.agreement)
    return _LOCAL.pack(kind, m.number, m.captured_at, length, dims, m.agreement, m.samples) + values


def _read_local(data: bytes) -> LocalChunk:
    _, number, captured_at, length, dims, agreement, samples = _LOCAL.unpack(data[: _LOCAL.size])
    _times(captured_at, agreement)
    return LocalChunk(number, captured_at, _read_rows(data[_LOCAL.size :], length, dims), agreement, samples)


def _write_miss(kind: int, m: Miss) -> bytes:
    text = _write_text(m.text)
    return _MISS.pack(kind, m.sequence, m.outcome, len(text)) + text


def _read_miss(data: bytes) -> Miss:
    _, sequence, outcome, length = _MISS.unpack(data[: _MISS.size])
    if outcome == Outcome.MET:
        raise ValueError("a miss that was met")
    return Miss(sequence, Outcome(outcome), _read_text(data[_MISS.size :], length))


def _write_contract(kind: int, m: Contract) -> bytes:
    text = _write_text(m.text or "no reason given")
    return _TEXT.pack(kind, len(text)) + text


def _read_contract(data: bytes) -> Contract:
    _, length = _TEXT.unpack(data[: _TEXT.size])
    return Contract(_read_text(data[_TEXT.size :], length))


def _write_exhausted(kind: int, m: Exhausted) -> bytes:
    return _EXHAUSTED.pack(kind)


def _read_exhausted(data: bytes) -> Exhausted:
    _EXHAUSTED.unpack(data)
    return Exhausted()


# Message class -> (its kind on the wire, writer, reader).
_KINDS: dict[type[Any], tuple[int, Callable[[int, Any], bytes], Callable[[bytes], Message]]] = {
    Hint: (1, _write_hint, _read_hint),
    Ready: (2, _write_ready, _read_ready),
    FrameSeen: (3, _write_frame, _read_frame),
    Asked: (4, _write_asked, _read_asked),
    Chunk: (5, _write_chunk, _read_chunk),
    Miss: (6, _write_miss, _read_miss),
    Contract: (7, _write_contract, _read_contract),
    Exhausted: (8, _write_exhausted, _read_exhausted),
    LocalChunk: (9, _write_local, _read_local),
}
_READERS = {kind: read for kind, _, read in _KINDS.values()}
