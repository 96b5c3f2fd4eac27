"""A TCP proxy on real sockets, driven by two pipes of the pure model and controlled while it runs.

Rules of this file: all sockets and both pipes belong to one asyncio loop in one thread; the methods of `LinkProxy` may
be called from any thread and return once they have taken effect. Opening, ends and resets travel through the link as
bytes do, so that a robot behind a closed link learns nothing of a dead server.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import math
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from benchmarks.link.conditions import Conditions
from benchmarks.link.connection import BOTH, DOWN, UP, Connection, Direction, Kind, Leg, Payload, bound_buffers
from benchmarks.link.pipe import Delivery, Pipe
from benchmarks.link.traces import Trace

T = TypeVar("T")

_SEGMENT_BYTES = 8192
_CONTROL_BYTES = 60  # of a segment that opens or ends a connection
_START_S = 5.0


@dataclass(slots=True)
class _Orders:
    """What to do to the next bytes of one direction: given once and used up."""

    corrupt: int = 0
    duplicate: int = 0
    cut_after_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Counters:
    """Since the start: bytes delivered each way, connections that were accepted; and those that are open."""

    up_bytes: int
    down_bytes: int
    accepted: int
    open: int


class LinkProxy:
    """Listens on loopback (or elsewhere), passes bytes to `to` and back under the conditions of each direction.

    A context manager. Mutable state: connections, pipes, orders and counters, owned by the loop's thread.
    """

    def __init__(
        self,
        to: tuple[str, int],
        *,
        up: Conditions | None = None,
        down: Conditions | None = None,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._to, self._listen, self._clock = to, listen, clock
        now = clock()
        self._pipes: dict[Direction, Pipe[Payload]] = {
            UP: Pipe(up, seed=2 * seed, now=now),
            DOWN: Pipe(down, seed=2 * seed + 1, now=now),
        }
        self._orders = {direction: _Orders() for direction in BOTH}
        self._bytes = dict.fromkeys(BOTH, 0)
        self._timers: dict[Direction, asyncio.TimerHandle] = {}
        self._random = random.Random(seed)
        self._flows = itertools.count(1)
        self._connections: dict[int, Connection] = {}
        self._accepted = 0
        self._connecting: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._server: asyncio.Server | None = None
        self.port = 0
        self.address = ""

    # Control, from any thread

    def set(self, conditions: Conditions, *directions: Direction) -> None:
        """These conditions from now on; both ways where no direction is named, here and below."""
        self._do(self._set, directions, lambda _: conditions)

    def change(self, *directions: Direction, **fields: Any) -> None:
        """Some fields of Conditions, e.g. `change(UP, delay_ms=20.0)`."""
        self._do(self._set, directions, lambda old: dataclasses.replace(old, **fields))

    def set_rate(self, mbps: float | Trace | None, *directions: Direction) -> None:
        self.change(*directions, rate_mbps=mbps)

    def partition(self, *directions: Direction) -> None:
        """Nothing passes until `heal`; nobody is told."""
        self.change(*directions, closed=True)

    def heal(self, *directions: Direction) -> None:
        self.change(*directions, closed=False)

    def reset(self) -> None:
        """Every connection ends at once on both sides with RST, as by a firewall that forgot it."""
        self._do(self._each, Connection.abort)

    def half_open(self) -> None:
        """The far side forgets every connection, and the near side never hears of it: what it sends is swallowed."""
        self._do(self._each, Connection.orphan)

    def corrupt(self, direction: Direction, segments: int = 1) -> None:
        """Flip a bit in each of the next `segments` segments."""
        self._do(setattr, self._orders[direction], "corrupt", segments)

    def duplicate(self, direction: Direction, segments: int = 1) -> None:
        """Deliver each of the next `segments` segments twice."""
        self._do(setattr, self._orders[direction], "duplicate", segments)

    def truncate(self, direction: Direction, after_bytes: int = 0) -> None:
        """After so many more bytes the connection that carries them ends."""
        self._do(setattr, self._orders[direction], "cut_after_bytes", after_bytes)

    def counters(self) -> Counters:
        return self._do(self._count)

    def __enter__(self) -> LinkProxy:
        self._thread.start()
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._end)
            asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(_START_S)
            on_error.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(_START_S)
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_S)
        self._loop.close()

    def _do(self, action: Callable[..., T], *arguments: Any) -> T:
        async def run() -> T:
            return action(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(_START_S)

    # In the loop's thread

    async def _start(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound_buffers(listener)  # accepted sockets inherit it
        listener.bind(self._listen)
        self._server = await self._loop.create_server(self._accept, sock=listener)
        host, self.port = listener.getsockname()
        self.address = f"{host}:{self.port}"

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for timer in self._timers.values():
            timer.cancel()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        self._each(Connection.abort)
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    def _accept(self) -> Leg:
        self._accepted += 1
        connection = Connection(self, next(self._flows))
        self._connections[connection.flow] = connection
        return connection.near

    def _each(self, action: Callable[[Connection], None]) -> None:
        for connection in list(self._connections.values()):
            action(connection)

    def _count(self) -> Counters:
        return Counters(self._bytes[UP], self._bytes[DOWN], self._accepted, len(self._connections))

    def _set(self, directions: tuple[Direction, ...], new: Callable[[Conditions], Conditions]) -> None:
        now = self._clock()
        for direction in directions or BOTH:
            pipe = self._pipes[direction]
            pipe.set(now, new(pipe.conditions))
            self._pump(direction)

    def send(self, direction: Direction, flow: int, payload: Payload) -> None:
        """Put one payload on the link, in segments."""
        now, pipe, data = self._clock(), self._pipes[direction], payload.data
        if payload.kind is not Kind.DATA:
            pipe.push(now, flow, _CONTROL_BYTES, payload)
        for start in range(0, len(data), _SEGMENT_BYTES):
            part = data[start : start + _SEGMENT_BYTES]
            pipe.push(now, flow, len(part), Payload(Kind.DATA, part))
        self._pump(direction)

    def has_room(self, direction: Direction, flow: int) -> bool:
        return self._pipes[direction].room(self._clock(), flow) > 0

    def connect(self, connection: Connection) -> None:
        """Open the far leg; a refusal travels back as a reset."""
        task = self._loop.create_task(self._connect(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: Connection) -> None:
        try:
            await self._loop.create_connection(lambda: connection.far, *self._to)
        except OSError:
            self.send(DOWN, connection.flow, Payload(Kind.RESET))

    def forget(self, flow: int) -> None:
        if self._connections.pop(flow, None) is not None:
            for pipe in self._pipes.values():
                pipe.forget(self._clock(), flow)

    def _pump(self, direction: Direction) -> None:
        """Deliver what has arrived, and be called again when the next will have."""
        pipe = self._pipes[direction]
        for delivery in pipe.pop(self._clock()):
            connection = self._connections.get(delivery.flow)
            if connection is not None:
                self._deliver(direction, connection, delivery)
        timer = self._timers.pop(direction, None)
        if timer is not None:
            timer.cancel()
        now = self._clock()
        next_at = pipe.next_at(now)
        if next_at < math.inf:
            self._timers[direction] = self._loop.call_later(max(0.0, next_at - now), self._pump, direction)
        self._each(lambda connection: connection.breathe(direction))

    def _deliver(self, direction: Direction, connection: Connection, delivery: Delivery[Payload]) -> None:
        payload, orders = delivery.payload, self._orders[direction]
        if payload.kind is not Kind.DATA:
            connection.deliver(direction, payload)
            return
        data, copies = payload.data, delivery.copies
        if delivery.corrupt or orders.corrupt:
            data, orders.corrupt = self._flip(data), max(0, orders.corrupt - 1)
        if orders.duplicate:
            copies, orders.duplicate = 2, orders.duplicate - 1
        room = orders.cut_after_bytes
        if room is not None:
            orders.cut_after_bytes = room - len(data) if room >= len(data) else None
            data = data[:room]
        self._bytes[direction] += len(data) * copies
        connection.deliver(direction, Payload(Kind.DATA, data * copies), delivery.size)
        if room is not None and orders.cut_after_bytes is None:
            connection.cut()

    def _flip(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        damaged[self._random.randrange(len(damaged))] ^= 1 << self._random.randrange(8)
        return bytes(damaged)
