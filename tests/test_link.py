"""The link: every status is its error, every odd reply a ServerFault, and a late call is cancelled, never repeated."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

from splitvla_edge.link.calls import CameraPayload, InferCall
from splitvla_edge.link.grpc_link import GrpcLink, check_address
from splitvla_shared.codec import encode
from splitvla_shared.errors import (
    STATUS_TO_ERROR,
    ConfigError,
    DeadlineMissed,
    ServerFault,
    Unreachable,
)
from splitvla_shared.nouns import Scheme
from splitvla_shared.wire import inference_pb2 as pb
from tests.fake_server import SPEC, FakeServicer, answer, description, refusing, serving

PATCHES = np.linspace(-1, 1, SPEC.patches * SPEC.embed_dim, dtype=np.float32).reshape(SPEC.patches, SPEC.embed_dim)


def _call(sequence: int = 812, dims: int = 7, chunk_length: int = 1) -> InferCall:
    return InferCall(
        fingerprint=SPEC.fingerprint,
        session=(1 << 64) - 1,
        sequence=sequence,
        robot="arm",
        instruction="put the spoon on the towel",
        cameras=(CameraPayload("front", encode(PATCHES, Scheme.INT4)),),
        action_dims=dims,
        chunk_length=chunk_length,
        state=np.array([0.5, -1.0], np.float32),
        draft_tokens=(31999, 31744),
    )


@pytest.fixture
def servicer() -> FakeServicer:
    return FakeServicer()


@pytest.fixture
def link(servicer: FakeServicer) -> Iterator[GrpcLink]:
    with serving(servicer) as address, GrpcLink(address) as link:
        link.describe(5.0)
        yield link


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- one call ---------------------------------------------------------------------------------------------------------


def test_a_call_arrives_whole_and_its_reply_comes_back_typed(servicer: FakeServicer, link: GrpcLink) -> None:
    call = _call()
    reply = link.infer(call, 5.0)
    (request,) = servicer.requests
    assert (request.fingerprint, request.session, request.sequence) == (SPEC.fingerprint, (1 << 64) - 1, 812)
    assert (request.robot, request.instruction) == ("arm", "put the spoon on the towel")
    assert request.cameras[0].camera == "front"
    assert request.cameras[0].tensor == pb.EncodedTensor(scheme="INT4", data=call.cameras[0].tensor.data)
    assert not request.cameras[0].HasField("reference_sequence")
    assert (list(request.state), request.action_dims, list(request.draft_tokens)) == ([0.5, -1.0], 7, [31999, 31744])

    assert reply.tokens == tuple(range(31900, 31907))
    assert reply.chunk is None
    assert (reply.stages.queue_ms, reply.stages.total_ms) == (2.0, 11.0)
    assert (reply.load.queued, reply.load.sessions, reply.load.busy) == (3, 4, 0.25)
    assert not reply.draining


def test_a_continuous_chunk_comes_back_as_rows_of_actions(servicer: FakeServicer, link: GrpcLink) -> None:
    servicer.infer = lambda request, _: pb.InferReply(
        sequence=request.sequence, chunk=pb.ContinuousChunk(dims=3, values=range(6)), draining=True
    )
    reply = link.infer(_call(dims=3, chunk_length=2), 5.0)
    assert reply.chunk is not None
    np.testing.assert_array_equal(reply.chunk, np.arange(6, dtype=np.float32).reshape(2, 3))
    assert reply.tokens == ()
    assert reply.draining


# --- statuses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [*STATUS_TO_ERROR, "UNAUTHENTICATED", "UNKNOWN", "DATA_LOSS"])
def test_every_status_is_its_error_with_the_servers_reason(servicer: FakeServicer, link: GrpcLink, status: str) -> None:
    servicer.infer = refusing(status, "because\nof \x1b[31mthis")
    with pytest.raises(STATUS_TO_ERROR.get(status, ServerFault)) as caught:
        link.infer(_call(), 5.0)
    message = str(caught.value)
    assert type(caught.value) is STATUS_TO_ERROR.get(status, ServerFault)
    assert "frame 812" in message
    assert message.isprintable(), "a peer's text must not write into the terminal"
    assert "because of ?[31mthis" in message
    assert caught.value.by_server
    assert len(servicer.requests) == 1, "late work is never retried"


def test_a_handler_that_crashes_is_a_fault_of_the_server(servicer: FakeServicer, link: GrpcLink) -> None:
    def crash(*_: object) -> pb.InferReply:
        raise ZeroDivisionError

    servicer.infer = crash
    with pytest.raises(ServerFault, match="UNKNOWN"):
        link.infer(_call(), 5.0)


def test_a_reply_that_is_too_large_is_the_servers_fault_not_its_load(servicer: FakeServicer, link: GrpcLink) -> None:
    """gRPC reports our own bound on replies with the status that means load shedding."""
    tokens = pb.ActionTokens(ids=[1 << 20] * 80_000)
    servicer.infer = lambda request, _: pb.InferReply(sequence=request.sequence, tokens=tokens)
    with pytest.raises(ServerFault, match="larger than max"):
        link.infer(_call(), 5.0)


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_an_expired_call_is_cancelled_and_its_message_carries_the_numbers(
    servicer: FakeServicer, link: GrpcLink
) -> None:
    cancelled, release = threading.Event(), threading.Event()

    def hang(request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:
        context.add_callback(cancelled.set)
        release.wait(10)
        return answer(request)

    servicer.infer = hang
    call = _call()
    try:
        with pytest.raises(DeadlineMissed) as caught:
            link.infer(call, 1.0)
        assert str(caught.value) == f"frame 812: no answer in 1000 ms (int4, {call.wire_bytes:,} B)"
        assert cancelled.wait(5), "the server must learn that nobody waits any more"
    finally:
        release.set()


def test_closing_the_link_ends_a_call_in_flight(servicer: FakeServicer, link: GrpcLink) -> None:
    entered, release = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def hang(request: pb.InferRequest, _: grpc.ServicerContext) -> pb.InferReply:
        entered.set()
        release.wait(10)
        return answer(request)

    def call() -> None:
        try:
            link.infer(_call(), 10.0)
        except Unreachable as error:
            errors.append(error)

    servicer.infer = hang
    thread = threading.Thread(target=call)
    thread.start()
    assert entered.wait(5)
    link.close()
    thread.join(5)
    release.set()
    assert len(errors) == 1
    with pytest.raises(Unreachable, match="closed"):
        link.infer(_call(), 1.0)
    link.close()


# --- replies that are no answer ---------------------------------------------------------------------------------------


def _tokens(*ids: int) -> Callable[[pb.InferReply], None]:
    def change(reply: pb.InferReply) -> None:
        reply.tokens.ids[:] = ids

    return change


def _chunk(dims: int, *values: float) -> Callable[[pb.InferReply], None]:
    return lambda reply: reply.chunk.CopyFrom(pb.ContinuousChunk(dims=dims, values=values))


def _stage(name: str, value: float) -> Callable[[pb.InferReply], None]:
    return lambda reply: setattr(reply.stages, name, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda reply: setattr(reply, "sequence", 811), "answered for frame 811"),
        (lambda reply: setattr(reply, "sequence", 0), "answered for frame 0"),
        (lambda reply: reply.ClearField("tokens"), "no action"),
        (_tokens(), "0 tokens, expected 7"),
        (_tokens(*[31800] * 6), "6 tokens, expected 7"),
        (_tokens(*[31800] * 8), "8 tokens, expected 7"),
        (_tokens(*[31800] * 6, 1 << 24), "16777216"),
        (_tokens(*[31800] * 6, (1 << 32) - 1), "4294967295"),
        (_chunk(7), "0 values"),
        (_chunk(6, *[0.0] * 7), "of 6 dimensions"),
        (_chunk(1, *[0.0] * 8), "8 values of 1"),
        (_chunk((1 << 32) - 1, *[0.0] * 7), "expected 1 x 7"),
        (_chunk(7, *[0.0] * 6, math.nan), "not finite"),
        (_chunk(7, *[0.0] * 6, -math.inf), "not finite"),
        (_stage("total_ms", math.nan), "total_ms"),
        (_stage("queue_ms", -1.0), "queue_ms"),
        (_stage("prefill_ms", math.inf), "prefill_ms"),
        (lambda reply: setattr(reply.load, "busy", math.nan), "busy"),
        (lambda reply: setattr(reply.load, "busy", 7.0), "busy"),
    ],
)
def test_a_reply_that_is_no_answer_to_this_call_is_a_server_fault(
    servicer: FakeServicer, link: GrpcLink, change: Callable[[pb.InferReply], None], reason: str
) -> None:
    def garbled(request: pb.InferRequest, _: grpc.ServicerContext) -> pb.InferReply:
        reply = answer(request)
        change(reply)
        return reply

    servicer.infer = garbled
    with pytest.raises(ServerFault, match=reason) as caught:
        link.infer(_call(), 5.0)
    assert "frame 812" in str(caught.value)


def _serve_bytes(data: bytes) -> grpc.GenericRpcHandler:
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: data)
    return grpc.method_handlers_generic_handler("splitvla.v1.Inference", {"Describe": handler, "Infer": handler})


@pytest.mark.parametrize("data", [b"\xff" * 40, b"\x08", b"\x12\xff\xff\xff\xff\x0fshort"])
def test_bytes_that_are_no_message_are_a_server_fault(data: bytes) -> None:
    from concurrent import futures

    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((_serve_bytes(data),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with GrpcLink(f"127.0.0.1:{port}") as link:
            with pytest.raises(ServerFault):
                link.describe(5.0)
            with pytest.raises(ServerFault):
                link.infer(_call(), 5.0)
    finally:
        server.stop(None).wait(5)


# --- describe ---------------------------------------------------------------------------------------------------------


def test_a_server_describes_itself(link: GrpcLink) -> None:
    server = link.describe(5.0)
    assert server.spec == SPEC
    assert server.schemes == tuple(Scheme)
    assert (server.precision, server.version) == ("fp32", "0.0-test")
    assert server.load.busy == 0.5


def test_a_time_without_an_end_is_no_time_that_is_over(link: GrpcLink) -> None:
    """gRPC would end such a call at once, and `describe` would begin it again for ever."""
    assert link.describe(math.inf).spec == SPEC
    assert link.health(math.inf) == "SERVING"
    assert link.infer(_call(), math.inf).tokens


def test_schemes_of_a_newer_server_are_left_out(servicer: FakeServicer, link: GrpcLink) -> None:
    servicer.described.schemes.append(99)  # type: ignore[arg-type]
    assert link.describe(5.0).schemes == tuple(Scheme)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("resize", 0, "resize 0"),
        ("resize", 77, "resize 77"),
        ("patches", 0, "patches"),
        ("embed_dim", 1 << 31, "embed"),
    ],
)
def test_a_model_that_cant_exist_is_a_server_fault(
    servicer: FakeServicer, link: GrpcLink, field: str, value: int, reason: str
) -> None:
    setattr(servicer.described.spec, field, value)
    with pytest.raises(ServerFault, match=reason):
        link.describe(5.0)


def test_no_server_is_one_line_with_host_port_and_the_time_waited() -> None:
    port = _free_port()
    with GrpcLink(f"127.0.0.1:{port}") as link, pytest.raises(Unreachable) as caught:
        link.describe(1.5)
    message = str(caught.value)
    assert message.startswith(f"no server at 127.0.0.1:{port} after 1.5 s: ")
    assert "refused" in message
    assert message.isprintable()


def test_a_socket_that_never_speaks_is_unreachable_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, GrpcLink(f"127.0.0.1:{mute.getsockname()[1]}") as link:
        started = time.monotonic()
        with pytest.raises(Unreachable, match=r"after 0\.4 s"):
            link.describe(0.4)
        assert time.monotonic() - started < 3.0


def test_a_server_that_starts_late_is_found() -> None:
    port = _free_port()
    found: list[str] = []
    with GrpcLink(f"127.0.0.1:{port}") as link:
        waiting = threading.Thread(target=lambda: found.append(link.describe(20.0).version))
        waiting.start()
        with serving(FakeServicer(), port):
            waiting.join(20)
    assert found == ["0.0-test"]


def test_describe_waits_for_a_server_that_is_loading_its_model(
    servicer: FakeServicer, link: GrpcLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[pb.DescribeReply | None] = [description(), None]

    def describe(_: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeReply:
        reply = replies.pop() if replies else description()
        if reply is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "loading the model")
        assert reply is not None
        return reply

    monkeypatch.setattr(servicer, "Describe", describe)
    with serving(servicer) as address, GrpcLink(address) as second:
        assert second.describe(5.0).spec == SPEC
    assert replies == []


def test_a_stranger_on_the_port_is_named_as_such() -> None:
    from concurrent import futures

    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with GrpcLink(f"127.0.0.1:{port}") as link, pytest.raises(ServerFault, match="not a splitvla server"):
            link.describe(5.0)
    finally:
        server.stop(None).wait(5)


# --- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "gpu-host.lan:1", "[::1]:65535", "unix:5"])
def test_an_address_is_host_and_port(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":50051", "host:http", "host:0", "host:65536", "host:123456", "http://host:1", "::1:5",
     "unix:/tmp/s", "host:5 ", "host:5\n", "a b:5", "host:-5", "host:\u0665"],
)  # fmt: skip
def test_a_bad_address_is_a_configuration_error_with_the_right_form(address: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as 192\.168\.1\.20:50051"):
        GrpcLink(address)


def test_a_proxy_of_the_environment_does_not_get_between(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving(FakeServicer()) as address, GrpcLink(address) as link:
        assert link.describe(5.0).spec == SPEC
