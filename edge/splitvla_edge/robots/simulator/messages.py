"""What control and simulator say to each other over their socket pair: three small fixed messages.

Layout, little-endian: one byte for the kind, then the fields in the order of the class; an action or a position is its
length as u16 and so many doubles.
"""

from __future__ import annotations

import math
import socket
import struct
from dataclasses import dataclass

from splitvla_edge.daemon.datagrams import ChannelError, Datagrams, inherited_socket, socket_pair
from splitvla_edge.daemon.episodes import Episode, Outcome

_MAX_DIMS = 64
_MAX_MESSAGE = 1024


@dataclass(frozen=True, slots=True)
class Act:
    """Control to simulator, every tick. motion: an action of the policy, meant for `episode`; otherwise a hold.

    values: may be empty in a hold.
    """

    tick: int
    episode: int
    motion: bool
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """Simulator to control, after every step of the world. step: counted from the episode's first action.

    position: of the arm, as the world measures it; empty where it does not.
    """

    episode: int
    step: int
    position: tuple[float, ...] = ()


Message = Act | Status | Episode

_ACT = struct.Struct("<BQIBH")
_STATUS = struct.Struct("<BIIH")
_EPISODE = struct.Struct("<BIIBIII")
_ACT_KIND, _STATUS_KIND, _EPISODE_KIND = 1, 2, 3


def pack(message: Message) -> bytes:
    """The bytes of one message. Raises ChannelError when a field is out of its bounds."""
    try:
        if isinstance(message, Act):
            _check(message.values, int(message.motion))
            count = len(message.values)
            head = _ACT.pack(_ACT_KIND, message.tick, message.episode, int(message.motion), count)
            return head + struct.pack(f"<{count}d", *message.values)
        if isinstance(message, Status):
            _check(message.position, 0)
            count = len(message.position)
            head = _STATUS.pack(_STATUS_KIND, message.episode, message.step, count)
            return head + struct.pack(f"<{count}d", *message.position)
        m = message
        return _EPISODE.pack(_EPISODE_KIND, m.number, m.seed, m.outcome, m.steps, m.motions, m.overtaken)
    except (struct.error, ValueError) as error:
        raise ChannelError(f"message {type(message).__name__} can't be sent: {error}") from error


def unpack(data: bytes) -> Message:
    """The message of these bytes. Raises ChannelError on anything else."""
    kind = data[0] if data else 0
    try:
        if kind == _ACT_KIND:
            _, tick, episode, motion, count = _ACT.unpack(data[: _ACT.size])
            values = struct.unpack(f"<{count}d", data[_ACT.size :])
            _check(values, int(motion != 0))
            return Act(tick, episode, bool(motion), values)
        if kind == _STATUS_KIND:
            _, episode, step, count = _STATUS.unpack(data[: _STATUS.size])
            position = struct.unpack(f"<{count}d", data[_STATUS.size :])
            _check(position, 0)
            return Status(episode, step, position)
        if kind == _EPISODE_KIND:
            _, number, seed, outcome, *counts = _EPISODE.unpack(data)
            return Episode(number, seed, Outcome(outcome), *counts)
    except (struct.error, ValueError) as error:
        raise ChannelError(f"a message of kind {kind} and {len(data)} bytes is damaged: {error}") from error
    raise ChannelError(f"a message of {len(data)} bytes has an unknown kind; both processes must be one version")


def _check(values: tuple[float, ...], fewest: int) -> None:
    if not fewest <= len(values) <= _MAX_DIMS or not all(map(math.isfinite, values)):
        raise ValueError(f"{len(values)} numbers; expected {fewest}..{_MAX_DIMS}, all finite")


class SimulatorChannel(Datagrams[Message]):
    """The pair between control and simulator."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, pack, unpack, _MAX_MESSAGE)

    @classmethod
    def pair(cls) -> tuple[SimulatorChannel, socket.socket]:
        """This process's end, and the socket whose fd goes to the other process."""
        ours, theirs = socket_pair()
        return cls(ours), theirs

    @classmethod
    def from_fd(cls, fd: int) -> SimulatorChannel:
        """The end that the parent process handed over. Raises ChannelError when `fd` is no such socket."""
        return cls(inherited_socket(fd))
