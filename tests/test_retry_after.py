"""What a server that sheds load asks of the robot: read off its trailing metadata, bounded, and from nothing else."""

from __future__ import annotations

import grpc
import pytest

from splitvla_edge.link.calls import InferCall
from splitvla_edge.link.grpc_link import GrpcLink
from splitvla_shared.errors import Overloaded
from splitvla_shared.transport import read_retry_after, write_retry_after
from splitvla_shared.wire import inference_pb2 as pb
from tests.fake_server import SPEC, FakeServicer, serving

CALL = InferCall(SPEC.fingerprint, 1, 7, "robot", "pick", (), 7)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("250", 0.25), ("0", 0.0), ("999999999", 2.0), ("9999999999999", 0.0), ("-5", 0.0), ("soon", 0.0), (None, 0.0)],
)
def test_a_server_may_ask_to_be_left_alone_but_not_for_long(value: str | None, seconds: float) -> None:
    def busy(_: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:
        if value is not None:
            context.set_trailing_metadata((("retry-after-ms", value),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")
        raise AssertionError("abort raises")

    with serving(FakeServicer(busy)) as address, GrpcLink(address) as link:
        with pytest.raises(Overloaded) as caught:
            link.infer(CALL, 5.0)
        assert caught.value.retry_after_s == seconds


def test_what_is_written_is_read() -> None:
    assert [read_retry_after(write_retry_after(seconds)) for seconds in (0.0, 0.0201, 1.5, 90.0)] == [
        0.0,
        0.021,
        1.5,
        2.0,
    ]
    assert read_retry_after(None) == 0.0
