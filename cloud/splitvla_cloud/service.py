"""The Inference service: a request becomes a frame for the GPU, its tokens become a reply, errors become statuses."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from splitvla_cloud.engine.interface import Frame
from splitvla_cloud.payloads import PayloadDecoder
from splitvla_cloud.prompt import Prompt
from splitvla_cloud.references import ReferenceStore
from splitvla_cloud.validation import check_request
from splitvla_cloud.worker import RETRY_AFTER_S, GpuWorker, Served
from splitvla_shared import __version__
from splitvla_shared.actions import action_ids
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.errors import (
    KeyFrameNeeded,
    LinkError,
    Overloaded,
    RequestRejected,
    SplitVLAError,
    status_for_error,
)
from splitvla_shared.limits import MAX_INSTRUCTION_CHARS
from splitvla_shared.messages import spec_to_message
from splitvla_shared.spec import ModelSpec
from splitvla_shared.texts import one_line
from splitvla_shared.transport import write_refusal
from splitvla_shared.wire import inference_pb2 as pb
from splitvla_shared.wire.inference_pb2_grpc import InferenceServicer

logger = logging.getLogger("splitvla.cloud")


@dataclass(frozen=True, slots=True)
class Answered:
    """What was answered so far. clipped: tokens that are no action token, which the robot's side clips.

    key_frames: frames that had no action, because they were differences from one that was not here.
    """

    frames: int = 0
    tokens: int = 0
    clipped: int = 0
    key_frames: int = 0

    def plus(self, ids: Sequence[int], allowed: range) -> Answered:
        clipped = sum(number not in allowed for number in ids)
        return Answered(self.frames + 1, self.tokens + len(ids), self.clipped + clipped, self.key_frames)

    def plus_key_frame(self) -> Answered:
        return replace(self, key_frames=self.key_frames + 1)

    def __str__(self) -> str:
        return (
            f"answered {self.frames} frames; {self.clipped} of {self.tokens} tokens were no action tokens; "
            f"{self.key_frames} key frames asked for"
        )


_DECODE_THREADS = 2
# Payloads in the decoding pool at once. A legal one takes up to 4 MiB a camera, and as much again decoded.
_MAX_DECODING = 16


def read_request(data: bytes) -> pb.InferRequest | RequestRejected:
    """An error is told by `Infer`: gRPC would call one that is raised here UNKNOWN, and log a traceback for each."""
    try:
        return pb.InferRequest.FromString(data)
    except DecodeError as error:
        return RequestRejected(f"the request of {len(data)} bytes is no InferRequest: {one_line(str(error))}")


class InferenceService(InferenceServicer):
    """Owned by the event loop; `draining` is set by the server, `answered` counts since the start.

    Payloads are decoded on two threads of their own: a large one takes milliseconds, which would stall the event loop
    and with it the health answers, or the GPU thread; and a malformed one is answered at once, not behind the queue.
    """

    def __init__(
        self,
        spec: ModelSpec,
        prompt: Prompt,
        worker: GpuWorker,
        precision: str,
        tables: CodecTables | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._prompt = prompt
        self._worker = worker
        self._precision = precision
        self._clock = clock
        self._pool = ThreadPoolExecutor(_DECODE_THREADS, thread_name_prefix="decode")
        self._payloads = PayloadDecoder(spec, tables, ReferenceStore())
        self._decoding = 0
        self._action_ids = action_ids(spec.action_vocab_size, spec.action_bins)
        self.answered = Answered()
        self.draining = False

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeReply:  # noqa: N802
        """What is served; answers while the model is still loading."""
        return pb.DescribeReply(
            spec=spec_to_message(self._spec),
            schemes=[scheme.name for scheme in self._payloads.schemes],
            precision=self._precision,
            server_version=__version__,
            max_instruction_chars=MAX_INSTRUCTION_CHARS,
            draining=self.draining,
            load=self._load(),
        )

    async def Infer(self, request: pb.InferRequest | RequestRejected, context: Any) -> pb.InferReply:  # noqa: N802
        """One frame. Cancellation of the call, by the robot or by its deadline, takes the frame out of the queue."""
        arrived = self._clock()
        if isinstance(request, RequestRejected):
            await _refuse(context, pb.InferRequest(), request)
        remaining = context.time_remaining()
        deadline = math.inf if remaining is None else arrived + remaining
        try:
            return await self._infer(request, arrived, deadline)
        except SplitVLAError as error:
            await _refuse(context, request, error)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _infer(self, request: pb.InferRequest, arrived: float, deadline: float) -> pb.InferReply:
        spec = self._spec
        check_request(request, spec, self._worker.vocab_size)
        prompt_ids = self._prompt.ids(request.instruction)
        try:
            patches = await self._decode(request)
        except KeyFrameNeeded as error:
            return self._ask_for_key_frame(request, error, (self._clock() - arrived) * 1000)
        decoded = self._clock()
        count = spec.chunk_length * request.action_dims
        draft = tuple(request.draft_tokens)
        frame = Frame(request.session, request.sequence, prompt_ids, patches, count, deadline, draft)
        served = await asyncio.wrap_future(self._worker.submit(frame))
        return self._reply(request.sequence, served, (decoded - arrived) * 1000, (self._clock() - arrived) * 1000)

    async def _decode(self, request: pb.InferRequest) -> Any:
        if self._decoding >= _MAX_DECODING:
            error = Overloaded(f"frame {request.sequence}: {self._decoding} payloads are being decoded; slow down")
            error.retry_after_s = RETRY_AFTER_S
            raise error
        self._decoding += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._payloads.decode, request)
        finally:
            self._decoding -= 1

    def _reply(self, sequence: int, served: Served, payload_ms: float, total_ms: float) -> pb.InferReply:
        tokens = served.tokens
        self.answered = self.answered.plus(tokens.ids, self._action_ids)
        return pb.InferReply(
            sequence=sequence,
            tokens=pb.ActionTokens(ids=tokens.ids),
            stages=pb.StageDurations(
                decode_payload_ms=payload_ms,
                queue_ms=served.queue_ms,
                prefill_ms=tokens.prefill_ms,
                decode_ms=tokens.decode_ms,
                total_ms=total_ms,
            ),
            load=self._load(),
            draining=self.draining,
            accepted_draft_tokens=tokens.accepted_draft_tokens,
        )

    def _ask_for_key_frame(self, request: pb.InferRequest, error: KeyFrameNeeded, spent_ms: float) -> pb.InferReply:
        """No action and no fault: the robot sends the frame again, whole."""
        self.answered = self.answered.plus_key_frame()
        about = {"session": request.session}
        logger.info("session %016x robot %r: %s", request.session, request.robot, error, extra=about)
        return pb.InferReply(
            sequence=request.sequence,
            stages=pb.StageDurations(decode_payload_ms=spent_ms, total_ms=spent_ms),
            load=self._load(),
            draining=self.draining,
            key_frame_needed=True,
        )

    def _load(self) -> pb.ServerLoad:
        load = self._worker.load()
        return pb.ServerLoad(queued=load.queued, sessions=load.sessions, busy=load.busy)


async def _refuse(context: Any, request: pb.InferRequest, error: SplitVLAError) -> NoReturn:
    status = status_for_error(error)
    robot = request.robot[:64]
    about = {"session": request.session}
    logger.info("session %016x robot %r: %s: %s", request.session, robot, status, error, extra=about)
    retry_after_s = error.retry_after_s if isinstance(error, LinkError) else 0.0
    await context.abort(grpc.StatusCode[status], str(error), write_refusal(retry_after_s))
    raise AssertionError("abort raises")
