"""What the policy server's port bears: too large and too finely cut messages, silent connections, and too many."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection

from splitvla_edge.policy_server.app import MAX_CONNECTIONS, REASON_HEADER
from splitvla_edge.policy_server.numpy_msgpack import pack
from splitvla_edge.policy_server.port import MAX_FRAGMENTS
from splitvla_edge.policy_server.request import MAX_MESSAGE_BYTES
from splitvla_shared.bundle import open_bundle
from tests.fake_server import FakeServicer, description, serving
from tests.policy_clients import CALL, IMAGE, PATIENCE_S, PolicyServer, answer, ask, post, websocket_to


@pytest.fixture(scope="module")
def running(tiny_bundles: Path) -> Iterator[PolicyServer]:
    servicer = FakeServicer(described=description(open_bundle(tiny_bundles / "edge", "edge").spec))
    servicer.infer = answer
    with serving(servicer) as server, PolicyServer(tiny_bundles, server, "--deadline-ms", "20000") as process:
        process.wait_ready()
        yield process


@pytest.fixture
def address(running: PolicyServer) -> Iterator[str]:
    """It has to be alive and well afterwards."""
    address = running.wait_ready()
    yield address
    with websocket_to(address) as websocket:
        websocket.recv()
        assert ask(websocket, image=IMAGE, prompt="go")["actions"].shape == (1, 7)
    assert "Traceback" not in running.output


def _connected(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def _closed_with(websocket: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosedError) as closed:
        websocket.recv(timeout=PATIENCE_S)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


# --- messages ---------------------------------------------------------------------------------------------------------


def test_a_message_over_the_limit_ends_its_connection_before_it_is_read(address: str, running: PolicyServer) -> None:
    with websocket_to(address) as websocket:
        websocket.recv()
        # The head of a binary frame, final and masked: what is to come is refused by its length.
        websocket.socket.sendall(struct.pack("!BBQ4x", 0x82, 0xFF, MAX_MESSAGE_BYTES + 1))
        assert _closed_with(websocket)[0] == 1009
    running.wait_said("scale the picture down")


def _fragments(message: bytes, count: int) -> bytes:
    """The message in that many frames, most of them empty."""
    first = Frame(Opcode.BINARY, message, fin=False).serialize(mask=True)
    empty = Frame(Opcode.CONT, b"", fin=False).serialize(mask=True)
    return first + empty * (count - 2) + Frame(Opcode.CONT, b"", fin=True).serialize(mask=True)


def test_a_message_in_many_fragments_is_read(address: str) -> None:
    with websocket_to(address) as websocket:
        websocket.recv()
        websocket.socket.sendall(_fragments(pack({"image": IMAGE, "prompt": "go"}), MAX_FRAGMENTS))
        assert isinstance(websocket.recv(timeout=PATIENCE_S), bytes)
        assert ask(websocket, image=IMAGE, prompt="go")["actions"].shape == (1, 7), "the next is counted anew"


def test_a_message_in_more_fragments_than_any_client_makes_ends_its_connection(address: str) -> None:
    with websocket_to(address) as websocket:
        websocket.recv()
        websocket.socket.sendall(_fragments(pack({"image": IMAGE, "prompt": "go"}), MAX_FRAGMENTS + 1))
        code, reason = _closed_with(websocket)
    assert (code, "fragments" in reason) == (1008, True)


# --- connections ------------------------------------------------------------------------------------------------------


# What begins no request, and what goes on after one is answered without being one, or being read.
UNFINISHED = {
    "nothing": b"",
    "a letter": b"P",
    "half a head": b"POST /act HTTP/1.1\r\nHost: robot\r\n",
    "half of the next head": b"GET /healthz HTTP/1.1\r\nHost: robot\r\n\r\nP",
    "half a body that nobody reads": b"POST /nowhere HTTP/1.1\r\nHost: robot\r\nContent-Length: 9\r\n\r\n{",
}


def test_a_connection_on_which_no_request_is_under_way_or_comes_is_closed(address: str) -> None:
    with contextlib.ExitStack() as stack:
        silent = {name: stack.enter_context(_connected(address)) for name in UNFINISHED}
        for name, connection in silent.items():
            connection.sendall(UNFINISHED[name])
        for name, connection in silent.items():
            connection.settimeout(PATIENCE_S)
            while connection.recv(4096):  # an answer to what was a request
                pass
            print(f"{name}: closed")


def test_silent_connections_keep_others_out_for_seconds_and_the_operator_is_told(
    address: str, running: PolicyServer
) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(_connected(address)) for _ in range(2 * MAX_CONNECTIONS)]
        refused = post(address, CALL)
        assert (refused.status_code, refused.content) == (503, b'"error"')
        assert "too many connections are open" in refused.headers[REASON_HEADER]
        for connection in silent:
            assert connection.recv(1) == b""
    assert post(address, CALL).content != b'"error"'
    running.wait_said("too many connections are open")


def test_of_a_websocket_that_is_refused_the_operator_reads_our_word_alone(address: str, running: PolicyServer) -> None:
    with contextlib.ExitStack() as stack:
        open_ones = [stack.enter_context(websocket_to(address)) for _ in range(MAX_CONNECTIONS)]
        for websocket in open_ones:
            websocket.recv()
        with pytest.raises(InvalidStatus, match="503"):
            stack.enter_context(websocket_to(address))
        assert ask(open_ones[0], image=IMAGE, prompt="go")["actions"].shape == (1, 7)
    assert "ASGI" not in running.output
