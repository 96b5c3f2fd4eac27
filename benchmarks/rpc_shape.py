"""Unary or a stream per robot? Round trips over loopback for both, by payload size, client and server in two processes.

The server is grpc.aio, as ours is; the client is synchronous, as the edge's is. The payload is random bytes and the
reply is 64 bytes, so that only gRPC is measured. Shapes are interleaved round by round, so that a noisy machine
disturbs them alike. A robot calls a few times a second and not in a tight loop: `--pause-ms` sleeps before each call,
so that what it costs to wake idle cores is in the figure.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing as mp
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator
from multiprocessing.connection import Connection

import grpc
import numpy as np

from benchmarks import report
from splitvla_shared.transport import client_options, server_options

SIZES = (5_000, 50_000, 528_384, 2_097_152)
_REPLY = bytes(64)
_SERVICE = "benchmark.Echo"


async def _unary(request: bytes, context: object) -> bytes:
    return _REPLY


async def _stream(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield _REPLY


async def _serve(port_out: Connection) -> None:
    server = grpc.aio.server(options=server_options(max(SIZES) + 4096))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(_unary),
        "Stream": grpc.stream_stream_rpc_method_handler(_stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    port_out.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()


def _server_process(port_out: Connection) -> None:
    asyncio.run(_serve(port_out))


def _unary_caller(channel: grpc.Channel) -> Callable[[bytes], object]:
    call = channel.unary_unary(f"/{_SERVICE}/Unary")
    return lambda payload: call(payload, timeout=5.0)


def _stream_caller(channel: grpc.Channel) -> Callable[[bytes], object]:
    outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def requests() -> Iterator[bytes]:
        while True:
            yield outbox.get()

    replies = channel.stream_stream(f"/{_SERVICE}/Stream")(requests())

    def call(payload: bytes) -> object:
        outbox.put(payload)
        return next(replies)

    return call


def measure(rounds: int, pause_s: float, seed: int) -> str:
    """The Markdown table."""
    parent, child = mp.Pipe()
    server = mp.get_context("spawn").Process(target=_server_process, args=(child,), daemon=True)
    server.start()
    port = parent.recv()
    generator = np.random.default_rng(seed)
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=client_options())
    callers = {"unary": _unary_caller(channel), "stream": _stream_caller(channel)}
    rows = []
    for size in SIZES:
        payload = generator.bytes(size)
        samples: dict[str, list[float]] = {name: [] for name in callers}
        for turn in range(rounds + 20):
            for name, call in callers.items():
                time.sleep(pause_s)
                start = time.perf_counter()
                call(payload)
                if turn >= 20:  # the first calls open the connection and warm the caches
                    samples[name].append((time.perf_counter() - start) * 1000)
        unary, stream = (report.percentiles(samples[name]) for name in ("unary", "stream"))
        cells = [f"{value:.2f}" for value in (unary[0], unary[1], stream[0], stream[1])]
        rows.append([f"{size:,}", *cells, f"{unary[0] / stream[0]:.2f}"])
    server.terminate()
    title = report.heading(
        f"gRPC: unary call or stream, round trip over loopback, {pause_s * 1000:g} ms between calls",
        f"python -m benchmarks.rpc_shape --rounds {rounds} --pause-ms {pause_s * 1000:g}",
        packages=("grpcio",),
        seed=seed,
        n=rounds,
    )
    header = ("payload bytes", "unary p50 ms", "unary p99 ms", "stream p50 ms", "stream p99 ms", "p50 unary / stream")
    return title + "\n" + report.table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--pause-ms", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(measure(arguments.rounds, arguments.pause_ms / 1000, arguments.seed))


if __name__ == "__main__":
    main()
