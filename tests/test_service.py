"""The Inference service on real sockets: one status and one line for everything that can go wrong, and it goes on."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import zstandard
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitvla_shared import codec
from splitvla_shared.bundle import Bundle
from splitvla_shared.codec import SCHEMES
from splitvla_shared.errors import EarlyStop, ServerFault
from splitvla_shared.limits import max_message_bytes
from splitvla_shared.messages import spec_from_message, tensor_to_message
from splitvla_shared.nouns import FloatArray, Scheme
from splitvla_shared.transport import is_refusal, read_retry_after
from splitvla_shared.wire import inference_pb2 as pb
from tests.cloud_fakes import SPEC, WAIT_S, FakeBackbone, Served, fake_bundle, request, serving

BODY = SPEC.patches * SPEC.embed_dim * 4


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fake_bundle(tmp_path)


def with_server(
    bundle: Bundle, backbone: FakeBackbone, scenario: Callable[[Served], Coroutine[Any, Any, None]], **settings: Any
) -> None:
    async def run() -> None:
        async with serving(bundle, backbone, **settings) as served:
            await scenario(served)

    asyncio.run(asyncio.wait_for(run(), 3 * WAIT_S))


async def entered(backbone: FakeBackbone) -> None:
    """Return when a frame is on the GPU."""
    assert await asyncio.to_thread(backbone.entered.acquire, timeout=WAIT_S)


async def queued(served: Served, count: int) -> None:
    """Return when `count` frames wait for the GPU."""
    until = time.monotonic() + WAIT_S
    while (await served.stub.Describe(pb.DescribeRequest())).load.queued != count:
        assert time.monotonic() < until
        await asyncio.sleep(0.005)


async def refusal(call: Any) -> tuple[str, str]:
    """Status name and message of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    details = caught.value.details() or ""
    assert details.strip()
    assert "\n" not in details
    assert len(details) < 400
    return caught.value.code().name, details


def tensor(scheme: Scheme, data: bytes) -> pb.CameraEmbedding:
    return pb.CameraEmbedding(tensor=pb.EncodedTensor(scheme=scheme.name, data=data))


def crc(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_describe_tells_spec_schemes_and_limits(bundle: Bundle) -> None:
    async def scenario(served: Served) -> None:
        reply = await served.stub.Describe(pb.DescribeRequest())
        assert spec_from_message(reply.spec) == SPEC
        assert set(reply.schemes) == {int(scheme) for scheme in SCHEMES}
        assert (reply.precision, reply.max_instruction_chars, reply.draining) == ("bf16", 512, False)

    with_server(bundle, FakeBackbone(), scenario)


def test_a_frame_becomes_tokens_with_durations_and_load(bundle: Bundle) -> None:
    backbone = FakeBackbone()

    async def scenario(served: Served) -> None:
        reply = await served.stub.Infer(request(41, action_dims=3, draft_tokens=[1, 2, 3]), timeout=WAIT_S)
        assert (reply.sequence, list(reply.tokens.ids)) == (41, [31900, 31901, 31902])
        assert (reply.stages.prefill_ms, reply.stages.decode_ms) == (1.0, 2.0)
        assert 0 < reply.stages.decode_payload_ms < reply.stages.total_ms
        assert reply.load.sessions == 1
        assert reply.accepted_draft_tokens == 3
        assert not reply.draining

    with_server(bundle, backbone, scenario)
    assert backbone.prompts == [(1, 3, 5, 4, 9)]
    assert backbone.drafts == [(1, 2, 3)]


def test_cameras_keep_their_order(bundle: Bundle) -> None:
    seen: list[FloatArray] = []

    def answer(patches: FloatArray) -> tuple[int, ...]:
        seen.append(patches)
        return (31900,)

    async def scenario(served: Served) -> None:
        cameras = [request(value=value).cameras[0] for value in (1.0, 2.0)]
        await served.stub.Infer(request(cameras=cameras, action_dims=1), timeout=WAIT_S)

    with_server(bundle, FakeBackbone(answer), scenario)
    assert seen[0].shape == (2 * SPEC.patches, SPEC.embed_dim)
    assert seen[0][:, 0].tolist() == [1.0] * SPEC.patches + [2.0] * SPEC.patches


def test_health_answers_while_inference_runs(bundle: Bundle) -> None:
    backbone = FakeBackbone(held=True)

    async def scenario(served: Served) -> None:
        call = asyncio.ensure_future(served.stub.Infer(request(), timeout=WAIT_S))
        await entered(backbone)
        stub = health_pb2_grpc.HealthStub(served.channel)
        for name in ("", "splitvla.v1.Inference"):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        assert not call.done()
        backbone.release.set()
        assert list((await call).tokens.ids)

    with_server(bundle, backbone, scenario)


def test_a_robots_newer_frame_supersedes_its_queued_one(bundle: Bundle) -> None:
    backbone = FakeBackbone(held=True)

    async def scenario(served: Served) -> None:
        infer = served.stub.Infer
        running = asyncio.ensure_future(infer(request(1, 1.0), timeout=WAIT_S))
        await entered(backbone)
        older = asyncio.ensure_future(infer(request(2, 2.0), timeout=WAIT_S))
        await queued(served, 1)
        newer = asyncio.ensure_future(infer(request(3, 3.0), timeout=WAIT_S))
        status, details = await refusal(older)
        assert status == "ABORTED"
        assert "frame 2" in details
        backbone.release.set()
        assert (await running).sequence == 1
        assert (await newer).sequence == 3
        assert (await refusal(infer(request(2), timeout=WAIT_S)))[0] == "ABORTED"

    with_server(bundle, backbone, scenario)
    assert backbone.first_values == [1.0, 3.0]


@pytest.mark.parametrize("ending", ["cancelled", "expired"])
def test_a_frame_that_nobody_waits_for_never_reaches_the_gpu(bundle: Bundle, ending: str) -> None:
    backbone = FakeBackbone(held=True)

    async def scenario(served: Served) -> None:
        running = asyncio.ensure_future(served.stub.Infer(request(1, 1.0), timeout=WAIT_S))
        await entered(backbone)
        if ending == "cancelled":
            doomed = served.stub.Infer(request(1, 2.0, session=8), timeout=WAIT_S)
            await queued(served, 1)
            doomed.cancel()
        else:
            status, _ = await refusal(served.stub.Infer(request(1, 2.0, session=8), timeout=0.2))
            assert status == "DEADLINE_EXCEEDED"
        await queued(served, 0)
        backbone.release.set()
        assert (await running).sequence == 1
        assert (await served.stub.Infer(request(1, 3.0, session=9), timeout=WAIT_S)).sequence == 1

    with_server(bundle, backbone, scenario)
    assert backbone.first_values == [1.0, 3.0]


def test_a_full_queue_sheds_load(bundle: Bundle) -> None:
    backbone = FakeBackbone(held=True)

    async def scenario(served: Served) -> None:
        calls = [asyncio.ensure_future(served.stub.Infer(request(session=1), timeout=WAIT_S))]
        await entered(backbone)
        calls.append(asyncio.ensure_future(served.stub.Infer(request(session=2), timeout=WAIT_S)))
        await queued(served, 1)
        refused = served.stub.Infer(request(session=3), timeout=WAIT_S)
        status, _ = await refusal(refused)
        assert status == "RESOURCE_EXHAUSTED"
        metadata = await refused.trailing_metadata()
        assert (read_retry_after(metadata), is_refusal(metadata)) == (0.02, True)
        backbone.release.set()
        assert len(await asyncio.gather(*calls)) == 2

    with_server(bundle, backbone, scenario, queue_limit=1)


def test_who_finds_the_decoding_threads_busy_is_told_when_to_come_back(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitvla_cloud.service._MAX_DECODING", 0)

    async def scenario(served: Served) -> None:
        refused = served.stub.Infer(request(), timeout=WAIT_S)
        assert (await refusal(refused))[0] == "RESOURCE_EXHAUSTED"
        assert read_retry_after(await refused.trailing_metadata()) == 0.02

    with_server(bundle, FakeBackbone(), scenario)


_GOOD = request().cameras[0]
_FLIPPED = bytes([_GOOD.tensor.data[0] ^ 1]) + _GOOD.tensor.data[1:]
_NAN = np.full(BODY // 4, np.nan, dtype="<f4").tobytes()
_BOMB = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 26))
_REFERENCE = pb.CameraEmbedding(tensor=_GOOD.tensor, reference_sequence=1)
_OTHER_SHAPE = pb.CameraEmbedding(tensor=tensor_to_message(codec.encode(np.ones((3, 64), np.float32), Scheme.F32)))

BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "another model": ({"fingerprint": "ab" * 32}, "FAILED_PRECONDITION", "fake"),
    "no fingerprint": ({"fingerprint": ""}, "FAILED_PRECONDITION", "fake"),
    "600 characters": ({"instruction": "a" * 600}, "INVALID_ARGUMENT", "600 characters"),
    "no instruction": ({"instruction": " "}, "INVALID_ARGUMENT", "empty"),
    "a control character": ({"instruction": "a\nb"}, "INVALID_ARGUMENT", "control"),
    "a long robot name": ({"robot": "r" * 65}, "INVALID_ARGUMENT", "robot name"),
    "a robot name of lines": ({"robot": "a\nERROR b"}, "INVALID_ARGUMENT", "robot name"),
    "no camera": ({"cameras": []}, "INVALID_ARGUMENT", "0 cameras"),
    "too many cameras": ({"cameras": [_GOOD] * 3}, "INVALID_ARGUMENT", "3 cameras"),
    "no dims": ({"action_dims": 0}, "INVALID_ARGUMENT", "action_dims is 0"),
    "too many dims": ({"action_dims": 8}, "INVALID_ARGUMENT", "action_dims is 8"),
    "state not finite": ({"state": [0.0, float("nan")]}, "INVALID_ARGUMENT", "state[1]"),
    "state out of bounds": ({"state": [1e9]}, "INVALID_ARGUMENT", "state[0]"),
    "too much state": ({"state": [0.0] * 65}, "INVALID_ARGUMENT", "65 values"),
    "too many drafts": ({"draft_tokens": [1] * 8}, "INVALID_ARGUMENT", "8 draft"),
    "a draft out of vocabulary": ({"draft_tokens": [4_000_000_000]}, "INVALID_ARGUMENT", "vocabulary"),
    "a difference": ({"cameras": [_REFERENCE]}, "INVALID_ARGUMENT", "KLT_DELTA payload names"),
    "an empty payload": ({"cameras": [tensor(Scheme.F32, b"")]}, "INVALID_ARGUMENT", "0 bytes"),
    "another shape": ({"cameras": [_OTHER_SHAPE]}, "INVALID_ARGUMENT", "bytes"),
    "a flipped bit": ({"cameras": [tensor(Scheme.F32, _FLIPPED)]}, "INVALID_ARGUMENT", "CRC"),
    "not finite": ({"cameras": [tensor(Scheme.F32, crc(_NAN))]}, "INVALID_ARGUMENT", "NaN"),
    "a zstd bomb": ({"cameras": [tensor(Scheme.F32_ZSTD, _BOMB)]}, "INVALID_ARGUMENT", "bytes"),
    "no scheme": ({"cameras": [pb.CameraEmbedding()]}, "INVALID_ARGUMENT", "scheme 0"),
}


def test_every_malformed_request_has_its_status_and_the_server_goes_on(bundle: Bundle) -> None:
    backbone = FakeBackbone()

    async def scenario(served: Served) -> None:
        for name, (changes, status, fragment) in BAD.items():
            got, details = await refusal(served.stub.Infer(request(**changes), timeout=WAIT_S))
            assert (got, fragment in details) == (status, True), f"{name}: {got} {details!r}"
        unknown = request()
        unknown.cameras[0].tensor.MergeFromString(b"\x08\x63")  # scheme 99, which no stub can name
        assert "scheme 99" in (await refusal(served.stub.Infer(unknown, timeout=WAIT_S)))[1]
        infer = served.channel.unary_unary("/splitvla.v1.Inference/Infer")
        for name, data in (("no protobuf", b"\xff"), ("an instruction that is not UTF-8", b"\x2a\x01\xff")):
            got, details = await refusal(infer(data, timeout=WAIT_S))
            assert (got, "is no InferRequest" in details) == ("INVALID_ARGUMENT", True), f"{name}: {got} {details!r}"
        huge = request(cameras=[tensor(Scheme.F32, bytes(max_message_bytes(SPEC) + 1))])
        assert (await refusal(served.stub.Infer(huge, timeout=WAIT_S)))[0] == "RESOURCE_EXHAUSTED"
        assert (await served.stub.Infer(request(), timeout=WAIT_S)).sequence == 1

    with_server(bundle, backbone, scenario)
    assert backbone.first_values == [1.0]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("CUDA error: out of luck\nwith a second line"), "INTERNAL"),
        (MemoryError(), "INTERNAL"),
        (EarlyStop("the model ended its answer at position 3 of 7"), "OUT_OF_RANGE"),
    ],
)
def test_a_job_that_raises_fails_alone(
    bundle: Bundle, error: Exception, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(patches: FloatArray) -> tuple[int, ...]:
        if patches[0, 0] == 2.0:
            raise error
        return (31900,)

    async def scenario(served: Served) -> None:
        assert (await refusal(served.stub.Infer(request(1, 2.0, action_dims=1), timeout=WAIT_S)))[0] == status
        assert (await served.stub.Infer(request(2, 1.0, action_dims=1), timeout=WAIT_S)).sequence == 2

    with_server(bundle, FakeBackbone(answer), scenario)
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert len(tracebacks) == (status == "INTERNAL")


def test_three_faults_in_a_row_end_the_gpu_thread_and_a_success_starts_the_count_anew(bundle: Bundle) -> None:
    """After most CUDA errors every later call fails too, until the process is a new one."""

    def answer(patches: FloatArray) -> tuple[int, ...]:
        if patches[0, 0] == 2.0:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return (31900,)

    async def scenario(served: Served) -> None:
        for sequence, value in enumerate((2.0, 2.0, 1.0, 2.0, 2.0), start=1):
            call = served.stub.Infer(request(sequence, value, action_dims=1), timeout=WAIT_S)
            if value == 1.0:
                await call
            else:
                assert (await refusal(call))[0] == "INTERNAL"
        assert not served.server.ended.done()
        assert (await refusal(served.stub.Infer(request(9, 2.0, action_dims=1), timeout=WAIT_S)))[0] == "INTERNAL"
        with pytest.raises(ServerFault, match="3 passes in a row failed on the GPU thread"):
            await asyncio.wait_for(asyncio.wrap_future(served.server.ended), WAIT_S)
        assert (await refusal(served.stub.Infer(request(10), timeout=WAIT_S)))[0] == "UNAVAILABLE"

    with_server(bundle, FakeBackbone(answer), scenario)


def test_a_draining_server_still_answers_and_says_so(bundle: Bundle) -> None:
    backbone = FakeBackbone()

    async def scenario(served: Served) -> None:
        await served.stub.Infer(request(1), timeout=WAIT_S)
        drain = asyncio.ensure_future(served.server.drain())
        await asyncio.sleep(0)
        stub = health_pb2_grpc.HealthStub(served.channel)
        status = (await stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)).status
        assert status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await served.stub.Infer(request(2), timeout=WAIT_S)).draining
        assert (await served.stub.Describe(pb.DescribeRequest(), timeout=WAIT_S)).draining
        drain.cancel()

    with_server(bundle, backbone, scenario, drain_s=WAIT_S)


def test_stopping_ends_running_and_queued_calls_with_unavailable(bundle: Bundle) -> None:
    backbone = FakeBackbone(held=True)

    async def scenario(served: Served) -> None:
        calls = [asyncio.ensure_future(served.stub.Infer(request(session=1), timeout=WAIT_S))]
        await entered(backbone)
        calls.append(asyncio.ensure_future(served.stub.Infer(request(session=2), timeout=WAIT_S)))
        await queued(served, 1)
        stop = asyncio.ensure_future(served.server.stop(0))
        for call in calls:
            assert (await refusal(call))[0] == "UNAVAILABLE"
        backbone.release.set()
        await stop

    with_server(bundle, backbone, scenario)
    assert len(backbone.first_values) == 1
