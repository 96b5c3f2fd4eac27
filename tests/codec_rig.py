"""EdgePolicy and real servers around one set of codec tables; the backbone's answer tells what patches reached it."""

from __future__ import annotations

import asyncio
import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from splitvla_cloud.server import CloudServer, ServerSettings
from splitvla_edge.model import EdgeModel
from splitvla_edge.policy import EdgePolicy, Link
from splitvla_shared.actions import parse_statistics
from splitvla_shared.bundle import Bundle
from splitvla_shared.codec.bundled import CODEC_FILE
from splitvla_shared.nouns import FloatArray, Image, Observation, Scheme
from splitvla_shared.rungs import Rung
from tests.cloud_fakes import WAIT_S, FakeBackbone, fake_bundle
from tests.codec_tables import COLUMNS, ROWS, formula_coefficients, formula_tables
from tests.edge_fakes import STATISTICS
from tests.specs import make_spec

TABLES = formula_tables()
SPEC = make_spec(
    name="calibrated",
    patches=ROWS,
    embed_dim=COLUMNS,
    image_size=8,
    prompt_template="do {instruction} now",
    suffix_token_id=9,
    max_cameras=2,
    codec_sha256=TABLES.sha256,
)
RUNGS = (
    Rung("f32", Scheme.F32, 4 * ROWS * COLUMNS),
    Rung("fine", Scheme.KLT, 200, codec_rung=0),
    Rung("coarse", Scheme.KLT, 100, codec_rung=1),
)


def calibrated_bundle(path: Path) -> Bundle:
    (path / CODEC_FILE).write_bytes(TABLES.to_bytes())
    return dataclasses.replace(fake_bundle(path), spec=SPEC)


def tokens_of(patches: FloatArray) -> tuple[int, ...]:
    """Seven action tokens that another embedding would not give."""
    crc = zlib.crc32(patches.tobytes())
    return tuple(31744 + (crc >> 4 * index & 255) for index in range(7))


class ValueEncoder:
    """An image that is `value` all over becomes the formula's frame of that number."""

    def embed(self, image: Image) -> FloatArray:
        return formula_coefficients(int(image[0, 0, 0]))

    def coefficients(self, image: Image) -> FloatArray:
        return self.embed(image)


def policy(link: Link) -> EdgePolicy:
    model = EdgeModel(SPEC, parse_statistics(STATISTICS)["arm"])
    return EdgePolicy(model, ValueEncoder(), link, tables=TABLES, rungs=RUNGS)


def observation(*values: int) -> Observation:
    return Observation(0, tuple(np.full((8, 8, 3), value, np.uint8) for value in values), "grasp", 0.0)


class Servers:
    """Servers on sockets of their own, used from a thread beside the event loop. Mutable: `restart` replaces one."""

    def __init__(self, path: Path, count: int) -> None:
        self._bundle, self._count = calibrated_bundle(path), count
        self._loop = asyncio.get_running_loop()
        self.backbones = [FakeBackbone(tokens_of) for _ in range(count)]
        self._servers: list[CloudServer] = []

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{server.port}" for server in self._servers]

    @property
    def key_frames_asked_for(self) -> list[int]:
        return [server._service.answered.key_frames for server in self._servers]

    def restart(self, index: int = 0) -> None:
        """The same server anew, on the same port."""
        self._wait(self._restart(index))

    def drain(self, index: int = 0) -> None:
        self._servers[index]._service.draining = True

    async def __aenter__(self) -> Servers:
        self._servers = [await self._started(index, 0) for index in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            await server.stop(0)

    async def _restart(self, index: int) -> None:
        port = self._servers[index].port
        await self._servers[index].stop(0)
        self._servers[index] = await self._started(index, port)

    async def _started(self, index: int, port: int) -> CloudServer:
        settings = ServerSettings(listen=f"127.0.0.1:{port}", bind_wait_s=WAIT_S if port else 0)
        server = CloudServer(self._bundle, settings, lambda *_: self.backbones[index])
        await server.start()
        return server

    def _wait(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)


def with_servers(path: Path, scenario: Callable[[Servers], None], count: int = 1) -> None:
    """Run `scenario` in a thread while `count` servers serve."""

    async def run() -> None:
        async with Servers(path, count) as servers:
            await asyncio.to_thread(scenario, servers)

    asyncio.run(asyncio.wait_for(run(), 3 * WAIT_S))
