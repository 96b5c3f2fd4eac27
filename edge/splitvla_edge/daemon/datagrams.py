"""A local socket pair between two processes of this machine: small whole messages, never a wait on the sending side.

Rules of this file: bytes of the peer become a message or a ChannelError; sizes are bounded before anything is built;
a full buffer drops the message and counts it, because a slow peer must not slow the control loop. No pickle.
What the messages are is the matter of the modules that use it: channel.py (perception) and robots/simulator (a world).
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

from splitvla_shared.errors import SplitVLAError

M = TypeVar("M")

_MAX_PER_RECEIVE = 256  # more than a peer sends in any sane period: one call must end


class ChannelError(SplitVLAError):
    """Bytes that are no message of this protocol."""


class ChannelClosed(SplitVLAError):  # noqa: N818 - an ordinary end, not a fault
    """The peer is gone."""


class Datagrams(Generic[M]):
    """One end of the pair. Owned by its process; `send` may be called from two threads (a datagram is atomic).

    pack may raise ChannelError on a message that can't be sent, unpack on bytes that are none. max_bytes: the longest.
    """

    def __init__(
        self, sock: socket.socket, pack: Callable[[M], bytes], unpack: Callable[[bytes], M], max_bytes: int
    ) -> None:
        sock.setblocking(False)
        self._socket, self._pack, self._unpack, self._max_bytes = sock, pack, unpack, max_bytes
        self.dropped = 0

    def send(self, message: M) -> bool:
        """False when the peer's buffer is full and the message was dropped. Raises ChannelClosed."""
        data = self._pack(message)
        try:
            self._socket.send(data)
        except BlockingIOError:
            self.dropped += 1
            return False
        except OSError as error:
            raise ChannelClosed(f"the other process is gone ({error.strerror})") from error
        return True

    def receive(self) -> list[M]:
        """All messages that are there, without waiting. Raises ChannelError, and ChannelClosed once all are read."""
        messages: list[M] = []
        while len(messages) < _MAX_PER_RECEIVE:
            try:
                data, _, flags, _ = self._socket.recvmsg(self._max_bytes)
            except BlockingIOError:
                break
            except OSError as error:
                raise ChannelClosed(f"the other process is gone ({error.strerror})") from error
            if not data:
                if messages:
                    break  # the end is met again by the next call
                raise ChannelClosed("the other process closed its end")
            if flags & socket.MSG_TRUNC:
                raise ChannelError(f"a message is longer than {self._max_bytes} bytes")
            messages.append(self._unpack(data))
        return messages

    def wait(self, timeout_s: float) -> bool:
        """True when something can be received within `timeout_s`."""
        try:
            poller = select.poll()
            poller.register(self._socket, select.POLLIN)
            return bool(poller.poll(timeout_s * 1e3))
        except (OSError, ValueError) as error:
            raise ChannelClosed(f"this end is closed ({error})") from error

    def close(self) -> None:
        self._socket.close()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends that keep messages whole and in order, and that see the other one's end."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def inherited_socket(fd: int) -> socket.socket:
    """The end that the parent process handed over. Raises ChannelError when it is no such socket."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ChannelError(f"file descriptor {fd} is no socket ({error}); it is handed over by `run`") from error
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        sock.detach()
        raise ChannelError(f"file descriptor {fd} is not the daemon's socket; it is handed over by `run`")
    return sock
