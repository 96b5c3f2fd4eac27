"""uvicorn on a socket that is bound already; whoever runs it owns the signals and says when to stop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from splitvla_edge.policy_server.app import MAX_CONNECTIONS
from splitvla_edge.policy_server.request import MAX_MESSAGE_BYTES
from splitvla_shared.addresses import bound_socket, split_address
from splitvla_shared.errors import ConfigError

_STOP_GRACE_S = 1  # for replies that are being written


def bind(listen: str) -> socket.socket:
    """A bound socket that does not listen yet: early, so that a port in use is said before a model is loaded.

    Raises ConfigError.
    """
    try:
        return bound_socket(*split_address(listen))
    except OSError as error:
        raise ConfigError(f"can't listen on {listen}: {error.strerror or error}; give --listen another port") from error


class Port(uvicorn.Server):
    """An application behind a bound socket. `serve` returns after `should_exit` was set."""

    def __init__(self, app: ASGIApp, on_ready: Callable[[], object]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="websockets-sansio",
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_per_message_deflate=False,  # a few bytes must not become many
                limit_concurrency=2 * MAX_CONNECTIONS,
                timeout_graceful_shutdown=_STOP_GRACE_S,
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_config=None,
                log_level="error",
            )
        )
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would raise the signal again when it is done, and the exit code would be the signal's."""
        yield
