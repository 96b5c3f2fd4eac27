"""A real gRPC server in this process whose answers a test writes: the peer that the robot's side is tested against."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from splitvla_shared.messages import spec_to_message
from splitvla_shared.nouns import Scheme
from splitvla_shared.spec import ModelSpec
from splitvla_shared.transport import server_options, write_refusal
from splitvla_shared.wire import inference_pb2 as pb
from splitvla_shared.wire import inference_pb2_grpc as rpc
from tests.specs import make_spec

SPEC = make_spec(
    patches=4, embed_dim=64, image_size=8, prompt_template="do {instruction}", suffix_token_id=3, max_cameras=2
)

Infer = Callable[[pb.InferRequest, grpc.ServicerContext], pb.InferReply]


def description(spec: ModelSpec = SPEC, schemes: tuple[Scheme, ...] = tuple(Scheme)) -> pb.DescribeReply:
    return pb.DescribeReply(
        spec=spec_to_message(spec),
        schemes=[scheme.name for scheme in schemes],
        precision="fp32",
        server_version="0.0-test",
        max_instruction_chars=512,
        load=pb.ServerLoad(queued=1, sessions=2, busy=0.5),
    )


def answer(request: pb.InferRequest, _: grpc.ServicerContext | None = None) -> pb.InferReply:
    """A legal reply: one token a dimension, counting down from the highest bin."""
    return pb.InferReply(
        sequence=request.sequence,
        tokens=pb.ActionTokens(ids=range(31900, 31900 + request.action_dims)),
        stages=pb.StageDurations(decode_payload_ms=1, queue_ms=2, prefill_ms=3, decode_ms=4, total_ms=11),
        load=pb.ServerLoad(queued=3, sessions=4, busy=0.25),
    )


def refusing(status: str, why: str, *, marked: bool = True) -> Infer:
    """As a server of this version refuses, or, without its mark, as gRPC and whatever is on the way do."""

    def refuse(_: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:
        context.set_trailing_metadata(write_refusal(0.0) if marked else ())
        context.abort(grpc.StatusCode[status], why)
        raise AssertionError("abort raises")

    return refuse


class FakeServicer(rpc.InferenceServicer):
    """Answers with `described` and `infer`, which a test may exchange while it serves; keeps every request."""

    def __init__(self, infer: Infer = answer, described: pb.DescribeReply | None = None) -> None:
        self.infer = infer
        self.described = description() if described is None else described
        self.requests: list[pb.InferRequest] = []

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeReply:  # noqa: N802
        return self.described

    def Infer(self, request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:  # noqa: N802
        self.requests.append(request)
        return self.infer(request, context)


def highest_bins(spec: ModelSpec) -> FakeServicer:
    """Serves that model's spec and answers with the token of the highest bin in every dimension."""

    def highest(request: pb.InferRequest, _: grpc.ServicerContext) -> pb.InferReply:
        ids = [spec.action_vocab_size - 1] * request.action_dims
        return pb.InferReply(sequence=request.sequence, tokens=pb.ActionTokens(ids=ids))

    return FakeServicer(highest, description(spec))


@contextlib.contextmanager
def serving(
    servicer: rpc.InferenceServicer, port: int = 0, credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """Serve on the loopback; gives HOST:PORT."""
    server = grpc.server(futures.ThreadPoolExecutor(4), options=server_options(1 << 20))
    rpc.add_InferenceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    checks = health.HealthServicer()
    checks.set("splitvla.v1.Inference", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    address = f"127.0.0.1:{port}"
    bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(None).wait(5)
