"""The wire to the GPU host: a typed call in, a typed reply or a LinkError out; protobuf and grpc stay inside.

Rules of this file:
 - Nothing the peer sends is trusted: counts, ids, numbers and texts are checked, and what is odd is a ServerFault.
 - A call is never retried: a newer observation is always better. Only `describe` waits for a server to appear.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitvla_edge.link.calls import InferCall, Reply, ServerDescription, ServerLoad, ServerStages
from splitvla_edge.link.connection import Connection, unanswered
from splitvla_edge.link.security import Security
from splitvla_shared.errors import (
    ConfigError,
    DeadlineMissed,
    LinkError,
    ServerFault,
    Superseded,
    Unreachable,
    error_for_status,
)
from splitvla_shared.messages import spec_from_message, tensor_to_message
from splitvla_shared.nouns import FloatArray, Scheme
from splitvla_shared.texts import one_line
from splitvla_shared.transport import client_options, is_refusal, read_retry_after
from splitvla_shared.wire import inference_pb2 as pb
from splitvla_shared.wire import inference_pb2_grpc as rpc

_MAX_TOKEN_ID = 1 << 24
_KNOCK_S = 2.0
_RECONNECT_PAUSE_S = 0.1  # as long as the channel's own first back-off
_LONGEST_S = 1e6  # gRPC takes a time that its clock can't hold, such as infinity, for one that is over
# By whether this side uses TLS: a server that does not like our certificate closes the connection without a word.
_TLS_REMEDIES = {
    False: "and that both sides use TLS or neither does",
    True: "that the server uses TLS too, and that the certificates of both are in force and of the other's authority",
}
_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.%]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


class GrpcLink:
    """The connection to one server, which mends itself. Owned by the perception process; thread-safe."""

    def __init__(self, address: str, *, security: Security | None = None) -> None:
        """Open a channel; connecting happens in `describe`. Raises ConfigError on a bad address or TLS file."""
        self.address = check_address(address)
        target = f"dns:///{self.address}"  # explicit, so that a host called "unix" is a host
        credentials = None if security is None else grpc.ssl_channel_credentials(*security.read())
        self._tls_remedy = _TLS_REMEDIES[security is not None]
        self._connection = Connection(lambda: _Line(target, credentials))

    def describe(self, timeout_s: float) -> ServerDescription:
        """What the server serves, waiting up to `timeout_s` for one to answer.

        Raises Unreachable when none does, ServerFault when what answers is not a SplitVLA server.
        """
        deadline = time.monotonic() + timeout_s
        reason = "it does not answer"
        while (remaining := deadline - time.monotonic()) > 0:
            try:
                message = self._call("Describe", pb.DescribeRequest(), remaining)
                return _read_description(message, self.address)
            except grpc.RpcError as error:
                status = error.code().name
                if status == "UNAVAILABLE":
                    reason = one_line(error.details()) or reason
                elif status != "DEADLINE_EXCEEDED":
                    raise self._failure(error, "describe") from error
            time.sleep(max(0.0, min(_RECONNECT_PAUSE_S, deadline - time.monotonic())))
        raise Unreachable(
            f"no server at {self.address} after {timeout_s:.1f} s: {reason}; check the address, {self._tls_remedy}"
        )

    def health(self, timeout_s: float) -> str:
        """What the server's health service says of inference: "SERVING" or "NOT_SERVING".

        Raises Unreachable when none answers in time, ServerFault when there is no health service.
        """
        service = pb.DESCRIPTOR.services_by_name["Inference"].full_name
        try:
            line, left_s = self._line(timeout_s)
            check = health_pb2.HealthCheckRequest(service=service)
            reply = self._heard(lambda: line.health.Check(check, timeout=left_s))
        except grpc.RpcError as error:
            raise self._failure(error, "health") from error
        names = health_pb2.HealthCheckResponse.ServingStatus
        if reply.status not in names.values():  # the field is open: a peer may send any number
            raise ServerFault(f"health: {self.address} says status {reply.status}; is it a splitvla server?")
        return str(names.Name(reply.status))

    def infer(self, request: InferCall, deadline_s: float) -> Reply:
        """Send one observation and wait for its action, at most `deadline_s`; on expiry the call is cancelled.

        Raises the LinkError of the status, or ServerFault when the reply is not an action for this request.
        """
        try:
            message = self._call("Infer", _write_request(request), deadline_s)
        except grpc.RpcError as error:
            raise self._infer_failure(error, request, deadline_s) from error
        return _read_reply(message, request, self.address)

    def begin(self, request: InferCall, deadline_s: float) -> PendingCall:
        """Send one observation and do not wait: `reply` of what is returned does, and `cancel` gives it up."""
        try:
            line, left_s = self._line(deadline_s)
            future = line.inference.Infer.future(_write_request(request), timeout=left_s)
        except ValueError as error:
            raise Unreachable(f"the link to {self.address} is closed") from error
        future.add_done_callback(self._note_end)
        return PendingCall(future, request, self.address, lambda error: self._infer_failure(error, request, deadline_s))

    def close(self) -> None:
        """Close the connection; a call in flight ends with Unreachable. May be called twice."""
        self._connection.close()

    def __enter__(self) -> GrpcLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        line, left_s = self._line(timeout_s)
        return self._heard(lambda: getattr(line.inference, method)(request, timeout=left_s))

    def _heard(self, call: Callable[[], Any]) -> Any:
        """A call's reply; how it ends is told to the connection."""
        try:
            reply = call()
        except ValueError as error:  # grpc's only way to say that the channel is closed
            raise Unreachable(f"the link to {self.address} is closed") from error
        except grpc.RpcError as error:
            self._note(error)
            raise
        self._connection.heard()
        return reply

    def _line(self, timeout_s: float) -> tuple[_Line, float]:
        """For one call, and what is then left of the time that it may take."""
        until = time.monotonic() + min(timeout_s, _LONGEST_S)
        return self._connection.line(timeout_s), until - time.monotonic()

    def _note(self, error: grpc.RpcError | None) -> None:
        if error is not None and unanswered(error):
            self._connection.unheard()
        else:
            self._connection.heard()

    def _note_end(self, future: Any) -> None:
        if not future.cancelled():  # a call that was given up tells nothing
            self._note(future.exception())

    def _infer_failure(self, error: grpc.RpcError, request: InferCall, deadline_s: float) -> LinkError:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and unanswered(error):
            return DeadlineMissed(request.miss(deadline_s))
        return self._failure(error, f"frame {request.sequence}")

    def _failure(self, error: grpc.RpcError, what: str) -> LinkError:
        status, details = error.code().name, one_line(error.details())
        kind = error_for_status(status)
        if status == "CANCELLED":  # the server never cancels: our own side closed the channel
            kind = Unreachable
        elif status == "RESOURCE_EXHAUSTED" and "larger than max" in details:  # our own bound on replies
            kind = ServerFault
        elif status == "UNIMPLEMENTED":
            details = f"not a splitvla server of this version ({details})"
        failure = kind(f"{what}: the call to {self.address} ended with {status}: {details or 'no reason given'}")
        failure.retry_after_s = read_retry_after(error.trailing_metadata())
        failure.by_server = is_refusal(error.trailing_metadata())
        return failure


class _Line:
    """A channel and its stubs."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None) -> None:
        options = client_options()
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=options)
        self.inference = rpc.InferenceStub(self._channel)  # type: ignore[no-untyped-call]
        self.health = health_pb2_grpc.HealthStub(self._channel)

    def knock(self) -> Any:
        """The smallest call that every server answers, also one that is loading its model."""
        return self.inference.Describe.future(pb.DescribeRequest(), timeout=_KNOCK_S)

    def close(self) -> None:
        self._channel.close()


class PendingCall:
    """A call that was begun. Thread-safe, as grpc's futures are."""

    def __init__(
        self, future: Any, request: InferCall, address: str, failure: Callable[[grpc.RpcError], LinkError]
    ) -> None:
        self._future, self._request, self._address, self._failure = future, request, address, failure

    def reply(self) -> Reply:
        """Wait for the answer. Raises what `infer` raises; Superseded when the call was cancelled."""
        try:
            message = self._future.result()
        except grpc.FutureCancelledError as error:
            raise Superseded(
                f"frame {self._request.sequence}: the call was given up, another server answered"
            ) from error
        except grpc.RpcError as error:
            raise self._failure(error) from error
        return _read_reply(message, self._request, self._address)

    def cancel(self) -> None:
        """Does nothing to a call that has ended."""
        self._future.cancel()


def check_address(address: str) -> str:
    """HOST:PORT itself. Raises ConfigError on anything else."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise ConfigError(f"server address {address!r} is not HOST:PORT; write it as 192.168.1.20:50051 or [::1]:50051")
    return address


def check_addresses(text: str) -> tuple[str, ...]:
    """One HOST:PORT, or several with commas between them. Raises ConfigError when one is bad or stands there twice."""
    addresses = tuple(check_address(part.strip()) for part in text.split(","))
    if len(set(addresses)) < len(addresses):
        raise ConfigError(f"server {text!r} names an address twice; name each server once")
    return addresses


def _write_request(request: InferCall) -> pb.InferRequest:
    return pb.InferRequest(
        fingerprint=request.fingerprint,
        session=request.session,
        sequence=request.sequence,
        robot=request.robot,
        instruction=request.instruction,
        cameras=[
            pb.CameraEmbedding(
                camera=camera.camera,
                tensor=tensor_to_message(camera.tensor),
                reference_sequence=camera.reference_sequence,
            )
            for camera in request.cameras
        ],
        state=() if request.state is None else request.state.tolist(),
        action_dims=request.action_dims,
        draft_tokens=request.draft_tokens,
    )


def _read_reply(message: pb.InferReply, request: InferCall, address: str) -> Reply:
    frame = f"frame {request.sequence}"
    if message.sequence != request.sequence:
        raise ServerFault(f"{frame}: the server answered for frame {message.sequence}; the reply is dropped")
    action = message.WhichOneof("action")
    if message.key_frame_needed and (action is not None or request.key_frame is None):
        raise ServerFault(f"{frame}: the server asks for a key frame beside an action, or in answer to one")
    if action is None and not message.key_frame_needed:
        raise ServerFault(f"{frame}: the reply holds no action")
    tokens = _checked_tokens(message.tokens.ids, request) if action == "tokens" else ()
    chunk = _checked_chunk(message.chunk, request) if action == "chunk" else None
    return Reply(
        sequence=message.sequence,
        tokens=tokens,
        chunk=chunk,
        stages=_checked_stages(message.stages, frame),
        load=_read_load(message.load, frame),
        draining=message.draining,
        key_frame_needed=message.key_frame_needed,
        accepted_draft_tokens=message.accepted_draft_tokens,
        server=address,
    )


def _checked_tokens(ids: Sequence[int], request: InferCall) -> tuple[int, ...]:
    expected = request.chunk_length * request.action_dims
    if len(ids) != expected:
        raise ServerFault(f"frame {request.sequence}: the reply holds {len(ids)} tokens, expected {expected}")
    tokens = tuple(int(token) for token in ids)
    if max(tokens) >= _MAX_TOKEN_ID:
        raise ServerFault(f"frame {request.sequence}: token id {max(tokens)} is above any vocabulary")
    return tokens


def _checked_chunk(chunk: pb.ContinuousChunk, request: InferCall) -> FloatArray:
    steps, dims = request.chunk_length, request.action_dims
    if chunk.dims != dims or len(chunk.values) != steps * dims:
        raise ServerFault(
            f"frame {request.sequence}: the reply holds {len(chunk.values)} values of {chunk.dims} dimensions, "
            f"expected {steps} x {dims}"
        )
    values = np.array(chunk.values, np.float32).reshape(steps, dims)
    if not np.isfinite(values).all():
        raise ServerFault(f"frame {request.sequence}: the action holds numbers that are not finite")
    return values


def _checked_stages(stages: pb.StageDurations, what: str) -> ServerStages:
    durations = ServerStages(
        stages.decode_payload_ms, stages.queue_ms, stages.prefill_ms, stages.decode_ms, stages.total_ms
    )
    for name in ServerStages.__slots__:
        value = getattr(durations, name)
        if not (math.isfinite(value) and value >= 0):
            raise ServerFault(f"{what}: the server reports {name} = {value}; a duration is finite and not negative")
    return durations


def _read_load(load: pb.ServerLoad, what: str) -> ServerLoad:
    if not 0 <= load.busy <= 1.001:  # also false for NaN
        raise ServerFault(f"{what}: the server reports busy = {load.busy}; expected 0..1")
    return ServerLoad(load.queued, load.sessions, min(load.busy, 1.0))


def _read_description(message: pb.DescribeReply, address: str) -> ServerDescription:
    known = {scheme.value for scheme in Scheme}
    return ServerDescription(
        spec=spec_from_message(message.spec),
        schemes=tuple(Scheme(value) for value in message.schemes if value in known),
        precision=one_line(message.precision),
        version=one_line(message.server_version),
        draining=message.draining,
        load=_read_load(message.load, address),
    )
