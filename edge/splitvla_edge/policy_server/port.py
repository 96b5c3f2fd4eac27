"""uvicorn on a socket that is bound already; whoever runs it owns the signals and says when to stop.

What uvicorn leaves open is bounded here: the fragments of a websocket's message, and how long a connection may be
without a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from splitvla_edge.policy_server.app import MAX_CONNECTIONS, POLICY_VIOLATION, TOO_MANY_FRAGMENTS
from splitvla_edge.policy_server.request import MAX_MESSAGE_BYTES
from splitvla_shared.addresses import bound_socket, split_address
from splitvla_shared.errors import ConfigError

# The largest message in fragments of 4 kB has 12,288; empty ones would never come to the limit of bytes.
MAX_FRAGMENTS = 20_000
_STOP_GRACE_S = 1  # for replies that are being written
_HEAD_S = 5.0  # for a request's head to come, the first and every next one


def bind(listen: str) -> socket.socket:
    """A bound socket that does not listen yet: early, so that a port in use is said before a model is loaded.

    Raises ConfigError.
    """
    try:
        return bound_socket(*split_address(listen))
    except OSError as error:
        raise ConfigError(f"can't listen on {listen}: {error.strerror or error}; give --listen another port") from error


class Port(uvicorn.Server):
    """An application behind a bound socket. `serve` returns after `should_exit` was set.

    crowded: answers HTTP in its place while more connections are open than there is room for.
    """

    def __init__(self, app: ASGIApp, crowded: ASGIApp, on_ready: Callable[[], object]) -> None:
        super().__init__(
            uvicorn.Config(
                self._admit,
                http=_Http,
                ws=_Websocket,
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_per_message_deflate=False,  # a few bytes must not become many
                timeout_graceful_shutdown=_STOP_GRACE_S,
                lifespan="off",
                interface="asgi3",
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_config=None,
                log_level="error",
            )
        )
        self._app, self._crowded, self._on_ready = app, crowded, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would raise the signal again when it is done, and the exit code would be the signal's."""
        yield

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not uvicorn's limit_concurrency: what that answers no client of these protocols reads, and nobody is told.
        open_now = max(len(self.server_state.connections), len(self.server_state.tasks))
        full = scope["type"] == "http" and open_now > 2 * MAX_CONNECTIONS
        await (self._crowded if full else self._app)(scope, receive, send)


class _Http(H11Protocol):
    """Closes a connection on which no request is under way and no head of one comes. Mutable state: the timer."""

    _impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_a_head()

    def on_response_complete(self) -> None:
        # Before uvicorn's own, which may take up the next request at once; its keep-alive timer ends at the first byte.
        self._expect_a_head()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._expect_nothing()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def _expect_a_head(self) -> None:
        self._expect_nothing()
        self._impatience = self.loop.call_later(_HEAD_S, self._close_if_idle)

    def _expect_nothing(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def _close_if_idle(self) -> None:
        """The end of a request that is under way begins a new wait."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _Websocket(WebSocketsSansIOProtocol):
    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.close_sent:
            # A handshake that was refused is over. uvicorn would complain of every one, past the operator's printer and
            # on the event loop, where a terminal that hangs would hold up all clients.
            self.handshake_complete = True

    def handle_cont(self, event: Frame) -> None:
        if self.close_sent:  # frames that came with the one too many
            return
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
            return
        self.frames = []
        self.conn.fail(POLICY_VIOLATION, TOO_MANY_FRAGMENTS)
        self.handle_parser_exception()
