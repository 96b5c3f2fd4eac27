"""openpi's websocket: one connection a robot, msgpack with numpy arrays in it, inference inside the handler.

Source: openpi's websocket_policy_server.py and openpi-client. That package pins numpy below 2, so it can't be a
dependency here; where it is importable (`pip install --no-deps openpi-client`) the client is it, else the same in a few
lines. Both speak to the same server.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import Any, Protocol

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from benchmarks.end_to_end.pictures import Prepare, from_jpeg
from benchmarks.end_to_end.ways import Answered, Family
from benchmarks.end_to_end.whole import Whole
from splitvla_edge.policy_server.numpy_msgpack import pack, unpack
from splitvla_shared.errors import ServerFault, SplitVLAError, Unreachable
from splitvla_shared.nouns import Image


def serve_websocket(whole: Whole, listener: socket.socket) -> None:
    """Serve until the process ends."""

    async def handle(connection: ServerConnection) -> None:
        await connection.send(pack({"model": "baseline"}))
        try:
            while True:
                await connection.send(_answer(whole, await connection.recv()))
        except ConnectionClosed:
            return

    async def run() -> None:
        async with serve(handle, sock=listener, compression=None, max_size=None):
            await asyncio.get_running_loop().create_future()

    logging.getLogger("websockets").setLevel(logging.ERROR)
    asyncio.run(run())


def _answer(whole: Whole, data: str | bytes) -> str | bytes:
    started = time.perf_counter()
    try:
        observation = unpack(data if isinstance(data, bytes) else data.encode())
        image = observation["image"]
        acted = whole.act(from_jpeg(image) if isinstance(image, bytes) else image, observation["prompt"])
    except (KeyError, ValueError, TypeError, SplitVLAError) as error:
        return f"{type(error).__name__}: {error}"  # a text is openpi's sign of an error
    reply = {"actions": acted.action[None], "tokens": np.array(acted.tokens)}
    return pack(reply | {"server_timing": {"infer_ms": (time.perf_counter() - started) * 1e3}})


class _Client(Protocol):
    def infer(self, obs: dict[str, Any]) -> dict[str, Any]: ...


class _OwnClient:
    """openpi_client's WebsocketClientPolicy, as far as it is used here."""

    def __init__(self, host: str, port: int) -> None:
        connecting = connect(f"ws://{host}:{port}", compression=None, max_size=None, proxy=None)
        self._ws: ClientConnection = connecting.__enter__()  # newer versions connect only here; a way lives for a run
        self._ws.recv()  # the server's metadata

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        self._ws.send(pack(obs))
        reply = self._ws.recv()
        if isinstance(reply, str):
            raise RuntimeError(reply)
        answer: dict[str, Any] = unpack(reply)
        return answer


def open_client(host: str, port: int) -> tuple[_Client, str]:
    """A client, and what it is. Raises what connecting raises."""
    try:
        from openpi_client.websocket_client_policy import WebsocketClientPolicy
    except ImportError:
        return _OwnClient(host, port), "openpi's protocol"
    return WebsocketClientPolicy(host, port), "openpi-client"


class WebsocketWay:
    """A robot that sends pictures over openpi's websocket."""

    def __init__(self, name: str, address: str, prepare: Prepare, family: Family) -> None:
        """Raises Unreachable when nothing answers there."""
        self.family, self._prepare, self._address = family, prepare, address
        host, _, port = address.rpartition(":")
        try:
            self._client, kind = open_client(host, int(port))
        except (OSError, WebSocketException) as error:
            command = "python -m benchmarks.end_to_end.serve websocket --help"
            raise Unreachable(f"no websocket server at {address}; start one there: {command}") from error
        self.name = name.format(client=kind)

    def act(self, image: Image, instruction: str) -> Answered:
        started = time.perf_counter()
        sent = self._prepare(image)
        observation = {"image": sent, "prompt": instruction}
        sent_at = time.perf_counter()  # packing is the client's, and counts as wire
        try:
            reply = self._client.infer(observation)
        except (OSError, WebSocketException) as error:
            raise Unreachable(f"{self._address} gave no answer: {type(error).__name__}") from error
        except RuntimeError as error:
            raise ServerFault(f"{self._address}: {error}") from error
        action = tuple(reply["actions"][0].tolist())
        total_ms = (time.perf_counter() - started) * 1e3
        return Answered(
            tokens=tuple(reply["tokens"].tolist()),
            action=action,
            total_ms=total_ms,
            robot_ms=(sent_at - started) * 1e3,
            server_ms=float(reply["server_timing"]["infer_ms"]),
            up_bytes=len(pack(observation)),
            down_bytes=len(pack(reply)),
        )

    def close(self) -> None:
        pass  # openpi's client has no way to close; the connection ends with the process
