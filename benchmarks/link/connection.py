"""One TCP connection through the proxy: two legs, whose bytes, ends and resets all travel through the link.

Owned by the proxy's asyncio loop. What a connection may have waiting is bounded: a leg that is ahead of the link is not
read from, so that its sender feels the link as it would a real one.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
from dataclasses import dataclass
from typing import Protocol

_MAX_HELD_BYTES = 4 << 20  # waiting, on its way, and not taken by the far side; about the largest TCP window
_KERNEL_BUFFER_BYTES = 64 * 1024  # of the proxy's own sockets: the link's buffer is the pipe, not the kernel
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER for no time


class Direction(enum.Enum):
    """UP: from who connects (the robot). DOWN: back to it."""

    UP = "up"
    DOWN = "down"


UP, DOWN = Direction.UP, Direction.DOWN
BOTH = (UP, DOWN)


class Kind(enum.Enum):
    """What a segment says: TCP's SYN, SYN-ACK, bytes, FIN and RST."""

    OPEN = 1
    OPENED = 2
    DATA = 3
    END = 4
    RESET = 5


@dataclass(frozen=True, slots=True)
class Payload:
    kind: Kind
    data: bytes = b""


class Link(Protocol):
    """What a connection asks of the proxy."""

    def send(self, direction: Direction, flow: int, payload: Payload) -> None:
        """Put a payload on the link."""

    def has_room(self, direction: Direction, flow: int) -> bool:
        """Whether the flow's buffer takes more."""

    def connect(self, connection: Connection) -> None:
        """Open the far leg."""

    def forget(self, flow: int) -> None:
        """The connection is over."""


class Connection:
    """near is the leg of who connected, far the target's. Mutable state: bytes on their way, and how it ended."""

    def __init__(self, link: Link, flow: int) -> None:
        self.flow = flow
        self.near, self.far = Leg(self, UP), Leg(self, DOWN)
        self._link = link
        self._held = dict.fromkeys(BOTH, 0)
        self._orphaned = self._over = False

    def deliver(self, direction: Direction, payload: Payload, taken: int = 0) -> None:
        """A payload has crossed the link; taken: the bytes it had when it was sent."""
        self._held[direction] -= taken
        leg = self.far if direction is UP else self.near
        if payload.kind is Kind.OPEN:
            self._link.connect(self)
        elif payload.kind is Kind.OPENED:
            self.near.hold(False)
        elif payload.kind is Kind.DATA:
            leg.write(payload.data)
        elif payload.kind is Kind.END:
            leg.end()
        else:
            leg.reset()

    def breathe(self, direction: Direction) -> None:
        """Read on, or stop reading, as the buffers of this direction say."""
        source, sink = (self.near, self.far) if direction is UP else (self.far, self.near)
        room = self._link.has_room(direction, self.flow) and self._held[direction] + sink.unsent() < _MAX_HELD_BYTES
        source.read(room or self._orphaned)

    def abort(self) -> None:
        """Reset both sides."""
        for leg in (self.near, self.far):
            leg.reset()
        self._finish()

    def cut(self) -> None:
        """Close both sides in the middle of what they were saying."""
        for leg in (self.near, self.far):
            leg.close()
        self._finish()

    def orphan(self) -> None:
        """Reset the far side and swallow what the near side sends."""
        self._orphaned = True
        self.far.reset()

    def opened(self, leg: Leg) -> None:
        if self._over:
            leg.reset()
        elif leg is self.near:
            leg.hold(True)  # until the far side has accepted
            self._link.send(UP, self.flow, Payload(Kind.OPEN))
        else:
            self._link.send(DOWN, self.flow, Payload(Kind.OPENED))

    def sent(self, direction: Direction, data: bytes) -> None:
        if not (self._orphaned or self._over):
            self._held[direction] += len(data)
            self._link.send(direction, self.flow, Payload(Kind.DATA, data))

    def ended(self, direction: Direction, kind: Kind) -> bool:
        """False when nobody will answer this end."""
        if self._orphaned or self._over:
            return False
        self._link.send(direction, self.flow, Payload(kind))
        return True

    def lost(self) -> None:
        if self.near.gone and (self.far.gone or not self.far.connected):
            self._finish()

    def _finish(self) -> None:
        self._over = True
        self._link.forget(self.flow)


class Leg(asyncio.Protocol):
    """One TCP connection of the proxy. sends: the direction that its bytes take."""

    def __init__(self, connection: Connection, sends: Direction) -> None:
        self._connection, self._sends = connection, sends
        self._transport: asyncio.Transport | None = None
        self._held = self._full = False
        self._said_end = self._told_end = False
        self.gone = False

    @property
    def connected(self) -> bool:
        return self._transport is not None

    def unsent(self) -> int:
        """Bytes that crossed the link and that this side has not taken."""
        return self._transport.get_write_buffer_size() if self._transport is not None and not self.gone else 0

    def hold(self, held: bool) -> None:
        self._held = held
        self._switch()

    def read(self, room: bool) -> None:
        self._full = not room
        self._switch()

    def write(self, data: bytes) -> None:
        if self._open_transport is not None and not self._told_end:
            self._open_transport.write(data)

    def end(self) -> None:
        """Tell this side that the other has said all; both ends make an end of the connection."""
        transport = self._open_transport
        if transport is None or self._told_end:
            return
        self._told_end = True
        if self._said_end:
            transport.close()
            return
        try:
            transport.write_eof()
        except OSError:  # it was reset a moment ago, which nobody has told us yet
            transport.close()

    def close(self) -> None:
        if self._open_transport is not None:
            self._open_transport.close()

    def reset(self) -> None:
        if self._transport is not None and not self.gone:
            self.gone = True
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()

    @property
    def _open_transport(self) -> asyncio.Transport | None:
        if self.gone or self._transport is None or self._transport.is_closing():
            return None
        return self._transport

    def _switch(self) -> None:
        transport = self._open_transport
        if transport is None:
            return
        wanted = not (self._held or self._full)
        if wanted and not transport.is_reading():
            transport.resume_reading()
        elif not wanted and transport.is_reading():
            transport.pause_reading()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound_buffers(sock)
        # Not at once: before Python 3.11.4 asyncio begins to read after this call, and would undo a pause.
        asyncio.get_running_loop().call_soon(self._connection.opened, self)

    def data_received(self, data: bytes) -> None:
        self._connection.sent(self._sends, data)

    def eof_received(self) -> bool:
        self._said_end = True
        answered = self._connection.ended(self._sends, Kind.END)
        return answered and not self._told_end  # False closes this side; True leaves the other direction going

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.gone:
            self.gone = True
            if exc is not None:
                self._connection.ended(self._sends, Kind.RESET)
            elif not self._said_end:
                self._connection.ended(self._sends, Kind.END)
        self._connection.lost()

    def resume_writing(self) -> None:
        self._connection.breathe(DOWN if self._sends is UP else UP)


def bound_buffers(sock: socket.socket) -> None:
    """Keep the kernel from buffering for the link."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, _KERNEL_BUFFER_BYTES)
