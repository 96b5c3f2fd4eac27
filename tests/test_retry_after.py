"""What a server says with a refusal, by trailing metadata: that it is its own, and when the next call is welcome."""

from __future__ import annotations

import grpc
import pytest

from splitvla_edge.link.calls import InferCall
from splitvla_edge.link.grpc_link import GrpcLink
from splitvla_shared.errors import STATUS_TO_ERROR, Overloaded
from splitvla_shared.transport import read_retry_after, write_retry_after
from splitvla_shared.wire import inference_pb2 as pb
from tests.fake_server import SPEC, FakeServicer, refusing, serving

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


@pytest.mark.parametrize("status", ["UNAVAILABLE", "DEADLINE_EXCEEDED"])
@pytest.mark.parametrize("marked", [True, False])
def test_a_server_that_says_no_in_time_has_answered_and_no_second_connection_is_opened(
    status: str, marked: bool
) -> None:
    """An overloaded server that drops a frame early would have a connection and a Describe on top of it."""
    servicer = FakeServicer(refusing(status, "it never reached the GPU", marked=marked))
    with serving(servicer) as address, GrpcLink(address) as link:
        with pytest.raises(STATUS_TO_ERROR[status]) as caught:
            link.infer(CALL, 5.0)
        assert caught.value.by_server is marked
        assert (link._connection._fresh is None) is marked
    assert ("it never reached the GPU" in str(caught.value)) is (marked or status == "UNAVAILABLE")


def test_what_is_written_is_read() -> None:
    assert [read_retry_after(write_retry_after(seconds)) for seconds in (0.0, 0.0201, 1.5, 90.0)] == [
        0.0,
        0.021,
        1.5,
        2.0,
    ]
    assert read_retry_after(None) == 0.0
