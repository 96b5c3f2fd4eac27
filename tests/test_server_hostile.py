"""What one client does to its connection, and the others must not notice: on real sockets, frame by frame."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitvla_cloud import listener
from splitvla_shared.bundle import Bundle
from splitvla_shared.errors import ServerFault
from splitvla_shared.wire import inference_pb2 as pb
from splitvla_shared.wire.inference_pb2_grpc import InferenceStub
from tests.cloud_fakes import WAIT_S, FakeBackbone, fake_bundle, request, serving

_DATA, _HEADERS, _SETTINGS, _PING = 0, 1, 4, 6
_NO_WINDOW = struct.pack("!HI", 4, 0)  # SETTINGS_INITIAL_WINDOW_SIZE: the peer may send no byte of data


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fake_bundle(tmp_path)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def field(name: bytes, value: bytes) -> bytes:
    return bytes([0, len(name)]) + name + bytes([len(value)]) + value


def call(path: bytes, message: bytes = b"", settings: bytes = b"") -> bytes:
    """The first bytes of an HTTP/2 connection that makes one gRPC call."""
    post, http = b"\x83", b"\x86"
    headers = post + http + field(b":path", path) + field(b":authority", b"x") + field(b"te", b"trailers")
    headers += field(b"content-type", b"application/grpc")
    data = b"\0" + struct.pack("!I", len(message)) + message
    opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(_SETTINGS, 0, 0, settings)
    return opening + frame(_HEADERS, 4, 1, headers) + frame(_DATA, 1, 1, data)


async def stay_alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: asyncio.Event) -> None:
    """Answer the server's pings, as long as it sends any; tells when headers came."""
    while True:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        if head[3] == _HEADERS:
            headers.set()
        if head[3:5] == bytes([_PING, 0]):
            writer.write(frame(_PING, 1, 0, payload))


def test_a_watcher_that_takes_no_bytes_keeps_nobody_from_the_news_and_the_server_from_no_leave(bundle: Bundle) -> None:
    async def run() -> None:
        async with serving(bundle, FakeBackbone()) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
            writer.write(call(b"/grpc.health.v1.Health/Watch", settings=_NO_WINDOW))
            told = asyncio.Event()
            alive = asyncio.ensure_future(stay_alive(reader, writer, told))
            await asyncio.wait_for(told.wait(), WAIT_S)  # of its headers: the status waits for the window
            watch = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
            statuses = aiter(watch)
            assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.SERVING
            await asyncio.wait_for(served.server.drain(), WAIT_S)
            assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await asyncio.wait_for(served.server.stop(0), WAIT_S)
            alive.cancel()
            writer.close()

    asyncio.run(run())


def test_a_call_whose_path_is_not_utf8_does_not_close_the_port_for_good(bundle: Bundle) -> None:
    async def run() -> None:
        async with serving(bundle, FakeBackbone()) as served:
            for sequence in (1, 2):
                reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
                writer.write(call(b"/\xff"))
                while await asyncio.wait_for(reader.read(4096), WAIT_S):
                    pass
                writer.close()
                async with grpc.aio.insecure_channel(f"127.0.0.1:{served.server.port}") as channel:
                    stub = InferenceStub(channel)  # type: ignore[no-untyped-call]
                    reply = await stub.Infer(request(sequence), timeout=WAIT_S, wait_for_ready=True)
                    assert reply.sequence == sequence

    asyncio.run(run())


def test_a_call_that_ends_grpcs_loop_as_the_server_leaves_is_no_fault_of_leaving(bundle: Bundle) -> None:
    async def run() -> None:
        async with serving(bundle, FakeBackbone()) as served:
            _, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
            writer.write(call(b"/\xff"))
            await writer.drain()
            await asyncio.sleep(0.05)  # the call is in the kernel's or in gRPC's hands by now; either is to be survived
            await asyncio.wait_for(served.server.stop(0), WAIT_S)
            writer.close()

    asyncio.run(run())


def test_a_port_that_another_process_took_meanwhile_is_a_fault_that_a_restart_may_mend(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with serving(bundle, FakeBackbone()) as served:
            monkeypatch.setattr(listener, "_AGAIN_S", 0.0)
            monkeypatch.setattr(listener, "port_is_taken", lambda host, port: True)
            _, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
            writer.write(call(b"/\xff"))
            with pytest.raises(ServerFault, match=f"the port is lost: 127.0.0.1:{served.server.port} is in use"):
                await asyncio.wait_for(served.server.last(), WAIT_S)
            writer.close()

    asyncio.run(run())


def test_a_describe_with_bytes_that_mean_nothing_is_answered(bundle: Bundle) -> None:
    """An empty message may get fields; those of a later robot are not this server's."""

    async def run() -> None:
        async with serving(bundle, FakeBackbone()) as served:
            describe = served.channel.unary_unary(
                "/splitvla.v1.Inference/Describe", response_deserializer=pb.DescribeReply.FromString
            )
            assert (await describe(b"\xff", timeout=WAIT_S)).spec.name

    asyncio.run(run())
