"""gRPC's health service (grpc.health.v1) for a process that serves as a whole or not at all.

Rules of this file: whoever says a status waits for nobody. The library's own servicer waits for its slowest watcher, so
that one client which takes no bytes would keep the server from saying anything, and from leaving.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1.health_pb2_grpc import HealthServicer


class Health(HealthServicer):  # type: ignore[misc]  # the library has no types
    """NOT_SERVING until `set` says otherwise. Owned by the event loop."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services)
        self._status = pb.HealthCheckResponse.NOT_SERVING
        self._changed = asyncio.Event()

    def set(self, status: Any) -> None:
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:  # noqa: N802
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no such service; known: {sorted(self._services)}")
        return pb.HealthCheckResponse(status=self._status)

    async def Watch(self, request: pb.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """The status now and whenever it has changed; one that passes while the client reads nothing is left out."""
        known, said = request.service in self._services, None
        while True:
            changed = self._changed
            status = self._status if known else pb.HealthCheckResponse.SERVICE_UNKNOWN
            if status != said:
                await context.write(pb.HealthCheckResponse(status=status))
                said = status
            await changed.wait()
