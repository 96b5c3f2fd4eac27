"""`serve-policy` when its server goes, comes back, hangs or is another, and when it is asked to leave."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest

from benchmarks.processes import free_port
from splitvla_edge.policy_server.app import REASON_HEADER
from splitvla_edge.policy_server.numpy_msgpack import pack
from splitvla_shared.bundle import open_bundle
from splitvla_shared.wire import inference_pb2 as pb
from tests.fake_server import FakeServicer, description, serving
from tests.policy_clients import CALL, IMAGE, KEY, PATIENCE_S, PolicyServer, answer, ask, post, websocket_to


@pytest.fixture(scope="module")
def servicer(tiny_bundles: Path) -> FakeServicer:
    return FakeServicer(described=description(open_bundle(tiny_bundles / "edge", "edge").spec))


def test_while_the_server_is_away_there_are_errors_and_afterwards_actions_again(
    tiny_bundles: Path, servicer: FakeServicer
) -> None:
    servicer.infer = answer
    port = free_port()
    with PolicyServer(tiny_bundles, f"127.0.0.1:{port}", "--deadline-ms", "20000") as process:
        address = process.wait_ready()
        before = post(address, CALL)
        assert before.content == b'"error"'
        assert f"no server at 127.0.0.1:{port}" in before.headers[REASON_HEADER]
        for _ in range(2):  # it comes, goes, and comes again
            with serving(servicer, port):
                _until_answered(address)
            gone = post(address, CALL)
            assert gone.content == b'"error"'
            assert "splitvla-cloud serve" in gone.headers[REASON_HEADER]
        assert process.alive()
        assert process.output.count("answers come again") == 2


def _until_answered(address: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while post(address, CALL).content == b'"error"':
        assert time.monotonic() < give_up, "no action, though the server is there"


def test_an_answer_that_does_not_come_in_time_is_an_error(tiny_bundles: Path, servicer: FakeServicer) -> None:
    late = threading.Event()

    def hangs(request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:
        assert late.wait(PATIENCE_S)
        return answer(request, context)

    with serving(servicer) as server, PolicyServer(tiny_bundles, server, "--deadline-ms", "400") as process:
        address = process.wait_ready()
        servicer.infer = answer
        _until_answered(address)
        servicer.infer = hangs
        with websocket_to(address) as websocket:
            websocket.recv()
            assert "--deadline-ms" in ask(websocket, image=IMAGE, prompt="go")
        reply = post(address, CALL)
        late.set()
    assert reply.content == b'"error"'
    assert "--deadline-ms" in reply.headers[REASON_HEADER]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_request_under_way_have_its_action_and_ends_well(
    tiny_bundles: Path, servicer: FakeServicer, number: signal.Signals
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow(request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:
        asked.set()
        assert go_on.wait(PATIENCE_S)
        return answer(request, context)

    servicer.infer = slow
    with (
        serving(servicer) as server,
        PolicyServer(tiny_bundles, server, "--deadline-ms", "20000") as process,
        websocket_to(process.wait_ready()) as websocket,
    ):
        websocket.recv()
        websocket.send(pack({"image": IMAGE, "prompt": "go"}))
        assert asked.wait(PATIENCE_S)
        process.send(number)
        go_on.set()
        assert isinstance(websocket.recv(timeout=PATIENCE_S), bytes)
        assert process.wait() == 0
    assert process.output.splitlines()[-1] == "splitvla-edge: stopped; 1 requests had an action, 0 an error"


def test_a_second_signal_ends_the_call_under_way(tiny_bundles: Path, servicer: FakeServicer) -> None:
    asked, over = threading.Event(), threading.Event()

    def hangs(request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:
        asked.set()
        assert over.wait(2 * PATIENCE_S)
        return answer(request, context)

    servicer.infer = hangs
    with (
        serving(servicer) as server,
        PolicyServer(tiny_bundles, server, "--deadline-ms", "600000") as process,
        websocket_to(process.wait_ready()) as websocket,
    ):
        try:
            websocket.recv()
            websocket.send(pack({"image": IMAGE, "prompt": "go"}))
            assert asked.wait(PATIENCE_S)
            process.send(signal.SIGTERM)
            process.send(signal.SIGINT)
            assert isinstance(websocket.recv(timeout=PATIENCE_S), str)
            assert process.wait() == 0
        finally:
            over.set()
    assert process.output.splitlines()[-1] == "splitvla-edge: stopped; 0 requests had an action, 1 an error"


def test_an_operator_who_can_not_be_told_anything_costs_no_action(tiny_bundles: Path, servicer: FakeServicer) -> None:
    """Standard output and error on a full disk, from the first line to the last."""
    servicer.infer = answer
    port, listen = free_port(), f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "splitvla_edge", "serve-policy", "--bundle", str(tiny_bundles / "edge")]
    options = ["--server", f"127.0.0.1:{port}", "--unnorm-key", KEY, "--listen", listen, "--threads", "1"]
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen([*command, *options], stdout=full, stderr=full) as process,
    ):
        try:
            _until_heard(process, listen)
            assert post(listen, CALL).content == b'"error"'
            with serving(servicer, port):
                _until_answered(listen)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def _until_heard(process: subprocess.Popen[bytes], address: str) -> None:
    host, port = address.split(":")
    while process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port))):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    raise AssertionError(f"serve-policy ended with {process.returncode} before it listened")


def test_a_server_of_another_model_ends_the_start_with_what_differs(tiny_bundles: Path) -> None:
    with serving(FakeServicer()) as server, PolicyServer(tiny_bundles, server) as process:
        assert process.wait() == 3
    assert "splitvla-edge: error: " in process.output
    assert "here," in process.output
    assert "Traceback" not in process.output
