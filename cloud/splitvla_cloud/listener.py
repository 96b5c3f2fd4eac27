"""The server's port: gRPC listens on it, and anew wherever gRPC's own loop ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from splitvla_cloud.settings import port_is_taken
from splitvla_shared.addresses import is_loopback, join_address, split_address
from splitvla_shared.errors import ConfigError, ServerFault

_BIND_EVERY_S = 0.1
_LOOK_S = 0.1  # between looks whether gRPC still listens
_AGAIN_S = 2.0  # what the port is waited for when it is lost, and what calls from before may take

logger = logging.getLogger("splitvla.cloud")


class Listener:
    """Owned by the event loop that calls `open`.

    build: makes a gRPC server with all its services, and without a port. credentials: None for plain text; they are
    kept, because files may be half renewed when they are needed again.
    """

    def __init__(
        self, build: Callable[[], grpc.aio.Server], listen: str, credentials: grpc.ServerCredentials | None
    ) -> None:
        self._build, self._credentials = build, credentials
        self._host, self.port = split_address(listen)
        self._server: grpc.aio.Server | None = None
        self._watching: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Future[Any]] = set()

    @property
    def address(self) -> str:
        return join_address(self._host, self.port)

    async def open(self, wait_s: float = 0.0) -> None:
        """Listen, trying for so long where another process holds the port. Raises ConfigError."""
        if self._credentials is None and not is_loopback(self._host):
            logger.warning("INSECURE: %s has no TLS; whoever reaches it can move the robot", self.address)
        await self._bind(wait_s)
        self._watching = asyncio.ensure_future(self._watch())

    async def lost(self) -> None:
        """Never returns. Raises ServerFault when the port is lost for good."""
        assert self._watching is not None, "after `open`"
        await asyncio.shield(self._watching)

    async def close(self, grace_s: float) -> None:
        """Refuse new calls, and give running ones `grace_s`. Raises nothing."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._server is not None:  # whose own loop may have ended just now
            await asyncio.gather(self._server.stop(grace_s), *self._leaving, return_exceptions=True)

    async def _watch(self) -> None:
        """A call whose path is not UTF-8 ends gRPC's loop (seen with grpcio 1.85), and nothing else would tell: the
        process would live on without a port.
        """
        while True:
            server = self._server
            assert server is not None, "`open` has bound"
            died: Any = (await asyncio.gather(server.wait_for_termination(_LOOK_S), return_exceptions=True))[0]
            if not isinstance(died, Exception):
                continue
            logger.error("gRPC stopped listening (%s: %s): listening anew", type(died).__name__, died)
            try:
                await self._bind(_AGAIN_S)
            except ConfigError as error:  # no setting is wrong: whoever restarts processes should try again
                raise ServerFault(f"the port is lost: {error}") from error
            leaving = asyncio.gather(server.stop(_AGAIN_S), return_exceptions=True)
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _bind(self, wait_s: float) -> None:
        """Raises ConfigError."""
        give_up = time.monotonic() + wait_s
        while self.port and port_is_taken(self._host, self.port):
            if time.monotonic() >= give_up:
                raise port_in_use(self.address)
            await asyncio.sleep(_BIND_EVERY_S)
        self._server = server = self._build()
        try:
            if self._credentials is None:
                self.port = server.add_insecure_port(self.address)
            else:
                self.port = server.add_secure_port(self.address, self._credentials)
        except RuntimeError as error:
            raise ConfigError(f"can't listen on {self.address}: {error}; check address and TLS files") from error
        await server.start()


def port_in_use(address: str) -> ConfigError:
    return ConfigError(f"{address} is in use by another process; stop it, choose a port, or use bind_wait_s")
