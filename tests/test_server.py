"""The cloud process: what it refuses to start with, when it says SERVING, and how it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitvla_cloud.server import CloudServer, ServerSettings, serve
from splitvla_cloud.settings import credentials
from splitvla_shared import codec
from splitvla_shared.addresses import split_address
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.config import load_config
from splitvla_shared.errors import BundleError, ConfigError, ServerFault
from splitvla_shared.messages import tensor_to_message
from splitvla_shared.nouns import Scheme
from splitvla_shared.wire import inference_pb2 as pb
from splitvla_shared.wire.inference_pb2_grpc import InferenceStub
from tests.cloud_fakes import WAIT_S, FakeBackbone, fake_bundle, request, serving

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fake_bundle(tmp_path)


@pytest.fixture
def taken_port() -> Iterator[tuple[socket.socket, int]]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other, other.getsockname()[1]


async def health(channel: grpc.aio.Channel) -> Any:
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=WAIT_S)).status


def test_settings_come_from_one_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text('bundle = "b"\nprecision = "nf4"\ndrain_s = 1\n')
    settings = load_config(ServerSettings, file, ["listen=127.0.0.1:0", "tls_key=k.pem"])
    assert (settings.bundle, settings.precision, settings.drain_s) == (Path("b"), "nf4", 1.0)
    assert (settings.listen, settings.tls_key) == ("127.0.0.1:0", Path("k.pem"))
    with pytest.raises(ConfigError, match="precision"):
        load_config(ServerSettings, None, ["precision=fp4"])
    with pytest.raises(ConfigError, match="queue_limit is 0"):
        ServerSettings(queue_limit=0)


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:50051", ("::1", 50051)), ("gpu.lab:1", ("gpu.lab", 1))],
)
def test_an_address_is_host_and_port(listen: str, address: tuple[str, int]) -> None:
    assert split_address(listen) == address


@pytest.mark.parametrize("listen", ["", "50051", ":50051", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "::1:50051"])
def test_what_is_no_address_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        split_address(listen)


@pytest.mark.parametrize("listen", ["0.0.0.0:50051", "[::]:50051", "192.168.1.4:50051", "gpu.lab:50051"])
def test_an_address_of_the_network_without_tls_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match="has no TLS"):
        serve(ServerSettings(bundle=Path("b"), listen=listen))
    assert credentials(ServerSettings(listen=listen, insecure_lab=True)) is None


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_needs_no_tls(listen: str) -> None:
    assert credentials(ServerSettings(listen=listen)) is None


def test_tls_files_come_together_and_must_be_pem(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("hello")
    with pytest.raises(ConfigError, match="tls_client_ca is missing"):
        credentials(ServerSettings(tls_cert=junk, tls_key=junk))
    with pytest.raises(ConfigError, match="is not PEM"):
        credentials(ServerSettings(tls_cert=junk, tls_key=junk, tls_client_ca=junk))
    absent = tmp_path / "absent.pem"
    with pytest.raises(ConfigError, match="No such file"):
        credentials(ServerSettings(tls_cert=absent, tls_key=absent, tls_client_ca=absent))


def test_a_bundle_that_is_none_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--bundle DIR"):
        serve(ServerSettings(listen="127.0.0.1:0"))
    with pytest.raises(BundleError, match="is not a bundle"):
        serve(ServerSettings(bundle=tmp_path, listen="127.0.0.1:0"))


def test_a_port_in_use_is_said_before_anything_is_loaded(taken_port: tuple[socket.socket, int]) -> None:
    with pytest.raises(ConfigError, match="in use by another process"):
        serve(ServerSettings(bundle=Path("none"), listen=f"127.0.0.1:{taken_port[1]}"))


def test_an_address_of_another_machine_is_said_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"can't listen on 192\.0\.2\.1:50051"):
        serve(ServerSettings(bundle=Path("none"), listen="192.0.2.1:50051", insecure_lab=True))


def test_a_warm_server_waits_for_the_port(bundle: Bundle, taken_port: tuple[socket.socket, int]) -> None:
    """A restart costs no load time: the new process is warm when the old one lets go."""
    other, port = taken_port
    loaded = threading.Event()

    def load(*_: Any) -> FakeBackbone:
        loaded.set()
        return FakeBackbone()

    async def run() -> None:
        server = CloudServer(bundle, ServerSettings(listen=f"127.0.0.1:{port}", bind_wait_s=WAIT_S), load)
        start = asyncio.ensure_future(server.start())
        assert await asyncio.to_thread(loaded.wait, WAIT_S)
        assert not start.done()
        other.close()
        await asyncio.wait_for(start, WAIT_S)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await health(channel) == SERVING
        await server.stop(0)

    asyncio.run(run())


def test_waiting_for_a_port_ends_with_an_error(bundle: Bundle, taken_port: tuple[socket.socket, int]) -> None:
    async def run() -> None:
        settings = ServerSettings(listen=f"127.0.0.1:{taken_port[1]}", bind_wait_s=0.15)
        server = CloudServer(bundle, settings, lambda *_: FakeBackbone())
        with pytest.raises(ConfigError, match="in use"):
            await server.start()
        await server.stop(0)

    asyncio.run(run())


def test_while_the_model_loads_health_says_not_serving_and_calls_are_unavailable(bundle: Bundle) -> None:
    release = threading.Event()

    def load(*_: Any) -> FakeBackbone:
        assert release.wait(WAIT_S)
        return FakeBackbone()

    async def run() -> None:
        server = CloudServer(bundle, ServerSettings(listen="127.0.0.1:0"), load)
        start = asyncio.ensure_future(server.start())
        while not server.port:
            await asyncio.sleep(0.005)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = InferenceStub(channel)  # type: ignore[no-untyped-call]
            assert await health(channel) == NOT_SERVING
            assert (await stub.Describe(pb.DescribeRequest(), timeout=WAIT_S)).spec.name == "fake"
            with pytest.raises(grpc.aio.AioRpcError, match="still loading") as caught:
                await stub.Infer(request(), timeout=WAIT_S)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            release.set()
            await asyncio.wait_for(start, WAIT_S)
            assert await health(channel) == SERVING
            assert (await stub.Infer(request(), timeout=WAIT_S)).sequence == 1
        await server.stop(0)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(BundleError("weights are damaged"), BundleError), (RuntimeError("no kernel image"), ServerFault)],
)
def test_a_model_that_can_not_be_loaded_ends_the_start(
    bundle: Bundle, raised: Exception, expected: type[Exception]
) -> None:
    def load(*_: Any) -> FakeBackbone:
        raise raised

    async def run() -> None:
        server = CloudServer(bundle, ServerSettings(listen="127.0.0.1:0"), load)
        with pytest.raises(expected, match=str(raised)):
            await server.start()
        await server.stop(0)

    asyncio.run(run())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_the_gpu_thread_is_noticed_and_its_frame_is_answered(bundle: Bundle) -> None:
    """An exception of a kind that no job may raise ends thread and server; a supervisor starts a clean one."""

    def answer(patches: Any) -> tuple[int, ...]:
        raise SystemExit

    async def run() -> None:
        async with serving(bundle, FakeBackbone(answer)) as served:
            with pytest.raises(grpc.aio.AioRpcError, match="the GPU thread ended") as caught:
                await served.stub.Infer(request(1), timeout=WAIT_S)
            assert caught.value.code() == grpc.StatusCode.INTERNAL
            await asyncio.wait_for(asyncio.wrap_future(served.server.ended), WAIT_S)
            with pytest.raises(grpc.aio.AioRpcError, match="going away"):
                await served.stub.Infer(request(2), timeout=WAIT_S)

    asyncio.run(run())


def test_with_tls_only_a_client_of_our_authority_is_served(bundle: Bundle, certificates: Path) -> None:
    def pem(name: str) -> bytes:
        return (certificates / name).read_bytes()

    async def run() -> None:
        files = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
        paths: dict[str, Any] = {name: certificates / file for name, file in files.items()}
        settings = ServerSettings(listen="0.0.0.0:0", **paths)
        server = CloudServer(bundle, settings, lambda *_: FakeBackbone())
        try:
            await server.start()
            await ask(server)
        finally:  # a server that goes on would keep a failure from ending
            await server.stop(0)

    async def ask(server: CloudServer) -> None:
        for key, cert, welcome in (("robot", "robot", True), ("other", "other", False), (None, None, False)):
            pair = (pem(f"{key}.key"), pem(f"{cert}.pem")) if key else (None, None)
            secrets = grpc.ssl_channel_credentials(pem("ca.pem"), *pair)
            async with grpc.aio.secure_channel(f"localhost:{server.port}", secrets) as channel:
                stub = InferenceStub(channel)  # type: ignore[no-untyped-call]
                if welcome:
                    assert (await stub.Infer(request(), timeout=WAIT_S)).sequence == 1
                    continue
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Infer(request(), timeout=WAIT_S)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE

    asyncio.run(run())


_PROGRAM = """
import logging, sys
from pathlib import Path
from splitvla_cloud.server import ServerSettings, serve
logging.basicConfig(level=logging.INFO)
settings = ServerSettings(Path(sys.argv[1]), precision="fp32", listen="127.0.0.1:0", drain_s=float(sys.argv[2]))
sys.exit(serve(settings))
"""


@contextlib.contextmanager
def server_process(bundle: Path, drain_s: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A real process around a real model, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(bundle), str(drain_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"GRPC_VERBOSITY": "NONE"},
    )
    watchdog = threading.Timer(6 * WAIT_S, process.kill)
    watchdog.start()
    try:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("ready on "):
                break
        else:
            pytest.fail("".join(lines))
        assert any(line.startswith("serving tiny ") and "fp32 on cpu" in line for line in lines)
        yield process, line.removeprefix("ready on ").strip()
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def real_request(bundle: Bundle, sequence: int) -> pb.InferRequest:
    patches = np.random.default_rng(1).standard_normal((bundle.spec.patches, bundle.spec.embed_dim), dtype=np.float32)
    camera = pb.CameraEmbedding(tensor=tensor_to_message(codec.encode(patches, Scheme.F16_ZSTD)))
    return request(sequence, fingerprint=bundle.spec.fingerprint, cameras=[camera], instruction="lift the cup")


def test_sigterm_lets_robots_leave_and_then_ends_the_process(tiny_bundles: Path) -> None:
    bundle = open_bundle(tiny_bundles / "cloud", "cloud")
    with server_process(bundle.path, drain_s=3.0) as (process, address), grpc.insecure_channel(address) as channel:
        stub: Any = InferenceStub(channel)  # type: ignore[no-untyped-call]
        first = stub.Infer(real_request(bundle, 1), timeout=WAIT_S)
        assert (len(first.tokens.ids), first.draining) == (7, False)
        process.send_signal(signal.SIGTERM)
        checks = health_pb2_grpc.HealthStub(channel)
        while checks.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S).status == SERVING:
            pass
        second = stub.Infer(real_request(bundle, 2), timeout=WAIT_S)
        assert (list(second.tokens.ids), second.draining) == (list(first.tokens.ids), True)
        assert process.wait(WAIT_S) == 0
        assert process.stdout
        log = process.stdout.read()
        assert "SIGTERM: leaving" in log
        assert "Traceback" not in log


def test_a_second_signal_stops_at_once(tiny_bundles: Path) -> None:
    bundle = open_bundle(tiny_bundles / "cloud", "cloud")
    with server_process(bundle.path, drain_s=600.0) as (process, address), grpc.insecure_channel(address) as channel:
        stub: Any = InferenceStub(channel)  # type: ignore[no-untyped-call]
        stub.Infer(real_request(bundle, 1), timeout=WAIT_S)
        process.send_signal(signal.SIGTERM)
        assert process.stdout
        assert any("draining: 1 sessions" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0


_STILL_LOADING = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from splitvla_cloud import __main__ as command, server

def load(bundle, settings):  # as transformers does it: every tensor is a job of a pool, queued at once
    pool = ThreadPoolExecutor(1)
    jobs = [pool.submit(time.sleep, 600) for _ in range(3)]
    print("loading", flush=True)
    jobs[0].result()

server.serve.__defaults__ = (load, print)
command.run()
"""


def test_a_signal_while_the_model_loads_ends_the_process_and_not_only_its_port(tiny_bundles: Path) -> None:
    command = ["serve", "--bundle", str(tiny_bundles / "cloud"), "--precision", "fp32", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen([sys.executable, "-c", _STILL_LOADING, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert any(line == "loading\n" for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_pass_that_hangs_is_told_by_health_until_it_ends(bundle: Bundle) -> None:
    backbone = FakeBackbone(held=True)

    async def told(channel: grpc.aio.Channel, status: Any) -> None:
        while await health(channel) != status:
            await asyncio.sleep(0.01)

    async def run() -> None:
        async with serving(bundle, backbone, hang_s=0.05) as served:
            call = asyncio.ensure_future(served.stub.Infer(request(), timeout=WAIT_S))
            await told(served.channel, NOT_SERVING)
            backbone.release.set()
            await call
            await told(served.channel, SERVING)

    asyncio.run(asyncio.wait_for(run(), WAIT_S))
