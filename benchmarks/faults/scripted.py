"""A server that gives honest answers until it is told to lie: late, damaged, foreign and impossible replies."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc

from splitvla_shared.bundle import open_bundle
from splitvla_shared.messages import spec_to_message
from splitvla_shared.nouns import Scheme
from splitvla_shared.spec import ModelSpec
from splitvla_shared.transport import server_options
from splitvla_shared.wire import inference_pb2 as pb

Answer = Callable[[pb.InferRequest], bytes]

_THINKS_S = 0.02
_MAX_MESSAGE = 8 << 20


class ScriptedServer:
    """Mutable state: `answer`, exchanged while it serves; None is the honest one."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.answer: Answer | None = None

    def describe(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        description = pb.DescribeReply(
            spec=spec_to_message(self.spec), schemes=[scheme.name for scheme in Scheme], precision="scripted",
            max_instruction_chars=512,
        )  # fmt: skip
        return bytes(description.SerializeToString())

    def infer(self, request: pb.InferRequest, context: grpc.ServicerContext) -> bytes:
        return (self.answer or self.honest)(request)

    def reply(self, request: pb.InferRequest) -> pb.InferReply:
        """A legal reply that changes from frame to frame, near the middle of the bins."""
        middle = self.spec.action_vocab_size - self.spec.action_bins // 2
        ids = [middle + (request.sequence + dim) % 8 for dim in range(request.action_dims)]
        thinks_ms = _THINKS_S * 1e3
        return pb.InferReply(
            sequence=request.sequence,
            tokens=pb.ActionTokens(ids=ids * self.spec.chunk_length),
            stages=pb.StageDurations(prefill_ms=thinks_ms, total_ms=thinks_ms),
        )

    def honest(self, request: pb.InferRequest) -> bytes:
        time.sleep(_THINKS_S)
        return bytes(self.reply(request).SerializeToString())

    def slow(self, seconds: float) -> Answer:
        def answer(request: pb.InferRequest) -> bytes:
            time.sleep(seconds)
            return self.honest(request)

        return answer

    def truncated(self, request: pb.InferRequest) -> bytes:
        return self.honest(request)[:-3]

    def of_an_older_frame(self, request: pb.InferRequest) -> bytes:
        reply = self.reply(request)
        reply.sequence = max(0, request.sequence - 1)
        return bytes(reply.SerializeToString())

    def not_finite(self, request: pb.InferRequest) -> bytes:
        reply = self.reply(request)
        reply.chunk.CopyFrom(pb.ContinuousChunk(dims=request.action_dims, values=[float("nan")] * request.action_dims))
        return bytes(reply.SerializeToString())

    def outside_the_bins(self, request: pb.InferRequest) -> bytes:
        reply = self.reply(request)
        reply.tokens.ids[0] = 5
        return bytes(reply.SerializeToString())


@contextlib.contextmanager
def scripted(bundle: Path) -> Iterator[tuple[ScriptedServer, tuple[str, int]]]:
    """A scripted server of the bundle's model on loopback, and its address."""
    server = ScriptedServer(open_bundle(bundle, "edge").spec)
    handlers = {
        "Describe": grpc.unary_unary_rpc_method_handler(server.describe),
        "Infer": grpc.unary_unary_rpc_method_handler(server.infer, request_deserializer=pb.InferRequest.FromString),
    }
    service = pb.DESCRIPTOR.services_by_name["Inference"].full_name
    real = grpc.server(futures.ThreadPoolExecutor(4), options=server_options(_MAX_MESSAGE))
    real.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = real.add_insecure_port("127.0.0.1:0")
    real.start()
    try:
        yield server, ("127.0.0.1", port)
    finally:
        real.stop(None).wait(5)
