"""The proxy over loopback: real sockets behave as the model of the link says."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.link import DOWN, UP, Conditions, LinkProxy, Trace
from benchmarks.link.__main__ import main
from benchmarks.link.connection import Connection, Direction, Kind, Payload
from benchmarks.processes import free_port

TIMEOUT_S = 10.0


class Echo:
    """A server that sends back what it gets, and keeps count. Mutable state: its sockets, owned by its threads."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.address: tuple[str, int] = self._listener.getsockname()
        self.received = 0
        self.paused = threading.Event()
        self.ended = threading.Event()

    def __enter__(self) -> Echo:
        self._threads[0].start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                self.received += len(data)
                if not self.paused.is_set():
                    connection.sendall(data)
        self.ended.set()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        yield server


@contextlib.contextmanager
def linked(
    echo: Echo, up: Conditions | None = None, down: Conditions | None = None
) -> Iterator[tuple[LinkProxy, socket.socket]]:
    with LinkProxy(echo.address, up=up, down=down) as proxy, connect(proxy) as client:
        yield proxy, client


def connect(proxy: LinkProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=TIMEOUT_S)


def ask(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return read(client, len(data))


def read(client: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (part := client.recv(65536)):
        got += part
    return got


def timed(client: socket.socket, data: bytes) -> float:
    """What the link may not undercut. A busy machine may add anything: how much is measured by `link_fidelity`."""
    started = time.monotonic()
    assert ask(client, data) == data
    return time.monotonic() - started


def test_bytes_pass_both_ways_and_are_counted(echo: Echo) -> None:
    data = bytes(range(256)) * 2000
    with linked(echo) as (proxy, client):
        assert ask(client, data) == data
        counted = proxy.counters()
        assert (counted.up_bytes, counted.down_bytes, counted.accepted, counted.open) == (len(data), len(data), 1, 1)


def test_an_end_travels_and_the_connection_is_forgotten(echo: Echo) -> None:
    with linked(echo) as (proxy, client):
        assert ask(client, b"x") == b"x"
        client.shutdown(socket.SHUT_WR)
        assert read(client, 1) == b""
        assert echo.ended.wait(TIMEOUT_S)
        assert proxy.counters().open == 0


def test_a_delay_is_met_each_way(echo: Echo) -> None:
    with linked(echo, Conditions(delay_ms=40.0), Conditions(delay_ms=20.0)) as (_, client):
        ask(client, b"x")  # the connection itself takes a round trip more
        assert timed(client, b"x") >= 0.06


@pytest.mark.parametrize("rate", [8.0, Trace(0.1, np.array([16.0, 0.0]))], ids=["number", "trace"])
def test_a_rate_is_met_each_way(echo: Echo, rate: float | Trace) -> None:
    with linked(echo, up=Conditions(rate_mbps=rate)) as (proxy, client):
        assert timed(client, bytes(300_000)) >= 0.2
        proxy.set_rate(None, UP)
        proxy.set_rate(8.0, DOWN)
        assert timed(client, bytes(300_000)) >= 0.3


def test_a_slow_link_pushes_back_on_its_sender(echo: Echo) -> None:
    slow = Conditions(rate_mbps=0.1, buffer_bytes=16 * 1024)
    with linked(echo, up=slow) as (proxy, client):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.sendall(bytes(4 << 20))
        assert proxy.counters().up_bytes < 64 * 1024


def test_a_far_side_that_does_not_read_pushes_back_through_the_link() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        LinkProxy(deaf.getsockname()) as proxy,
        connect(proxy) as client,
    ):
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.sendall(bytes(64 << 20))
        assert proxy.counters().up_bytes < 16 << 20


def test_a_partition_holds_everything_back_and_heals(echo: Echo) -> None:
    with linked(echo) as (proxy, client):
        ask(client, b"x")
        proxy.partition()
        client.sendall(b"late")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert echo.received == 1
        proxy.heal()
        client.settimeout(TIMEOUT_S)
        assert read(client, 4) == b"late"


def test_behind_a_partition_nobody_learns_of_an_end(echo: Echo) -> None:
    with linked(echo) as (proxy, client):
        ask(client, b"x")
        proxy.partition()
        client.close()
        assert not echo.ended.wait(0.2)
        proxy.heal()
        assert echo.ended.wait(TIMEOUT_S)


def test_a_reset_ends_every_connection_on_both_sides(echo: Echo) -> None:
    with linked(echo) as (proxy, client):
        ask(client, b"x")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert echo.ended.wait(TIMEOUT_S)
        with connect(proxy) as again:
            assert ask(again, b"new") == b"new"


def test_a_half_open_connection_swallows_what_is_sent(echo: Echo) -> None:
    with linked(echo) as (proxy, client):
        ask(client, b"x")
        proxy.half_open()
        assert echo.ended.wait(TIMEOUT_S)
        client.sendall(b"nobody hears this")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        with connect(proxy) as again:
            assert ask(again, b"new") == b"new"


def test_damage_is_done_once_to_the_direction_that_was_ordered(echo: Echo) -> None:
    data = bytes(100)
    with linked(echo) as (proxy, client):
        proxy.corrupt(DOWN)
        damaged = ask(client, data)
        assert sum(bin(byte).count("1") for byte in damaged) == 1
        assert ask(client, data) == data
        proxy.duplicate(UP)
        client.sendall(b"ab")
        assert read(client, 4) == b"abab"
        assert ask(client, data) == data


def test_a_truncated_answer_ends_after_the_ordered_bytes(echo: Echo) -> None:
    with linked(echo) as (proxy, client):
        proxy.truncate(DOWN, after_bytes=10)
        assert ask(client, bytes(1000)) == bytes(10)
        with connect(proxy) as again:
            assert ask(again, b"new") == b"new"


class ResetUnnoticed(asyncio.Transport):
    """A connection whose peer has reset it, which the kernel knows and nobody was told yet."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock})
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None:
        pass

    def write_eof(self) -> None:
        raise OSError(errno.ENOTCONN, "not connected")

    def close(self) -> None:
        self.closed = True


class SilentLink:
    """A link of which nothing is expected."""

    def send(self, direction: Direction, flow: int, payload: Payload) -> None: ...

    def has_room(self, direction: Direction, flow: int) -> bool:
        return True

    def connect(self, connection: Connection) -> None: ...

    def forget(self, flow: int) -> None: ...


def test_the_end_of_a_connection_that_was_reset_a_moment_ago_closes_it_and_spares_the_others() -> None:
    connection = Connection(SilentLink(), 1)

    async def end(transport: ResetUnnoticed) -> None:
        connection.near.connection_made(transport)
        await asyncio.sleep(0)
        connection.deliver(DOWN, Payload(Kind.END))

    with socket.socket() as sock:
        transport = ResetUnnoticed(sock)
        asyncio.run(end(transport))
    assert transport.closed


def test_nothing_listening_at_the_far_side_looks_like_a_reset() -> None:
    with (
        LinkProxy(("127.0.0.1", free_port())) as proxy,
        pytest.raises(ConnectionResetError),  # on a busy machine it comes before connect returns
        connect(proxy) as client,
    ):
        client.recv(1)


def test_the_command_line_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    addresses = ["--listen", "127.0.0.1:0", "--to", "127.0.0.1:1"]
    assert main([*addresses, "--trace", "gone.up"]) == 2
    assert "gone.up can't be read" in capsys.readouterr().err
    assert main([*addresses, "--rate-mbps", "-1"]) == 2
    assert "rate_mbps is -1.0" in capsys.readouterr().err
