"""EdgePolicy: one observation in, one action (or chunk of actions) out, through the split model."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from splitvla_edge.calls import CameraPayload, InferCall, Reply, ServerDescription
from splitvla_edge.encoder import OnnxEncoder
from splitvla_edge.image_pipelines import build_pipeline
from splitvla_edge.images import check_image
from splitvla_edge.link import GrpcLink, check_addresses
from splitvla_edge.model import EdgeModel, check_accepted, check_same_model, read_edge_model, read_ladder
from splitvla_edge.probe import probed
from splitvla_edge.providers import AUTO, Selection
from splitvla_edge.security import Security
from splitvla_edge.servers import ServerPool
from splitvla_edge.transforms import find_transform
from splitvla_shared.actions import Detokenized, detokenize
from splitvla_shared.bundle import open_bundle
from splitvla_shared.codec import encode
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.encoders import FP32
from splitvla_shared.errors import (
    BundleError,
    ConfigError,
    DeadlineMissed,
    ObservationError,
    ServerFault,
    SpecMismatch,
    Unreachable,
)
from splitvla_shared.image_pipelines import parse_image_pipeline
from splitvla_shared.limits import MAX_ROBOT_NAME_CHARS, MAX_STATE_DIMS, check_instruction
from splitvla_shared.nouns import (
    ActionArray,
    ActionChunk,
    FloatArray,
    Image,
    Observation,
    Scheme,
    ServerHints,
    StageTimes,
)
from splitvla_shared.rungs import Rung, plain_ladder

SOURCE = "cloud"


class Encoder(Protocol):
    def embed(self, image: Image) -> FloatArray:
        """uint8 RGB (image_size, image_size, 3) to float32 (patches, embed_dim)."""


class Link(Protocol):
    def describe(self, timeout_s: float) -> ServerDescription:
        """What the server serves; Unreachable when none answers in time."""

    def infer(self, request: InferCall, deadline_s: float) -> Reply:
        """A checked reply to this request, or a LinkError."""

    def close(self) -> None: ...


class EdgePolicy:
    """The robot's half of the policy. Owned by one thread of the perception process.

    Mutable state: sequence number and tokens of the last call, and what the server said in the last handshake.
    selection says what runs the encoder, where `open` opened it. rungs: what a frame may be sent with, best first.
    """

    def __init__(
        self,
        model: EdgeModel,
        encoder: Encoder,
        link: Link,
        *,
        robot: str = "robot",
        scheme: Scheme = Scheme.BF16,
        image_pipeline: str | None = None,
        camera_transform: str = "none",
        action_transform: str = "none",
        tables: CodecTables | None = None,
        rungs: tuple[Rung, ...] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Parts that are already open; `open` opens them. No network is touched before `handshake`.

        image_pipeline: hf, eval or eval-crop, None for the bundle's own. camera_transform: none or rotate180.
        action_transform: none, libero or simpler; what becomes of the un-normalised action.
        tables: of the bundle's codec. rungs: the payload ladder, best first; None: `scheme` and the plain ones below.
        """
        if len(robot) > MAX_ROBOT_NAME_CHARS or not robot.isprintable():
            raise ConfigError(f"robot name {robot!r} must be printable and at most {MAX_ROBOT_NAME_CHARS} characters")
        if model.statistics.dims > model.spec.max_action_dims:
            raise BundleError(
                f"statistics of {model.statistics.key!r} have {model.statistics.dims} dimensions, "
                f"spec.json allows {model.spec.max_action_dims}; split again"
            )
        self._square, self._transform = _conventions(model, image_pipeline, camera_transform, action_transform)
        self.model = model
        self.rungs = rungs or plain_ladder(scheme, (model.spec.patches, model.spec.embed_dim))
        self.server: ServerDescription | None = None
        self.selection: Selection | None = None
        self._encoder, self._link, self._robot, self._clock = encoder, link, robot, clock
        self._session = secrets.randbits(64)
        self._sequence = 0
        self._last_tokens: tuple[int, ...] = ()

    @classmethod
    def open(
        cls,
        bundle: Path | str,
        server: str,
        *,
        unnorm_key: str | None = None,
        robot: str = "robot",
        scheme: Scheme | str = Scheme.BF16,
        image_pipeline: str | None = None,
        camera_transform: str = "none",
        action_transform: str = "none",
        security: Security | None = None,
        threads: int | None = None,
        encoder: str = FP32,
        provider: str = AUTO,
        hedge_ms: float | None = None,
    ) -> EdgePolicy:
        """Open the edge bundle, load and probe the encoder, and prepare the link; `handshake` comes next.

        server: HOST:PORT, or several with commas between them, the preferred one first. hedge_ms: when a call without
        an answer is sent to a second server as well; None: never.
        encoder: fp32, or fp16 or int8 where the bundle has them. provider: auto, tensorrt, cuda or cpu.
        scheme: the top of the payload ladder: a scheme, or the name of one or of a rung of the bundle's codec.

        Raises BundleError, ConfigError, ObservationError (unknown `unnorm_key`).
        """
        addresses = check_addresses(server)  # first: a mistyped address should not cost a model load
        first = GrpcLink(addresses[0], security=security)
        link: Link = first
        try:
            opened = open_bundle(Path(bundle), "edge")
            model = read_edge_model(opened, unnorm_key)
            if len(addresses) > 1:
                others = [GrpcLink(address, security=security) for address in addresses[1:]]
                hedge_after_s = None if hedge_ms is None else hedge_ms / 1e3
                link = ServerPool([first, *others], model.spec.fingerprint, hedge_after_s=hedge_after_s)
            _conventions(model, image_pipeline, camera_transform, action_transform)  # nor should any other name
            tables, rungs = read_ladder(opened, scheme)
            onnx = OnnxEncoder(opened, threads, variant=encoder, provider=provider, tables=tables)
            probed(onnx, opened, encoder)
            policy = cls(
                model,
                onnx,
                link,
                robot=robot,
                image_pipeline=image_pipeline,
                camera_transform=camera_transform,
                action_transform=action_transform,
                tables=tables,
                rungs=rungs,
            )
        except BaseException:
            link.close()
            raise
        policy.selection = onnx.selection
        return policy

    @classmethod
    def connect(
        cls,
        bundle: Path | str,
        server: str,
        *,
        unnorm_key: str | None = None,
        robot: str = "robot",
        scheme: Scheme | str = Scheme.BF16,
        image_pipeline: str | None = None,
        camera_transform: str = "none",
        action_transform: str = "none",
        security: Security | None = None,
        connect_timeout_s: float = 5.0,
        threads: int | None = None,
        encoder: str = FP32,
        provider: str = AUTO,
    ) -> EdgePolicy:
        """`open`, then agree on the model with the server at HOST:PORT within `connect_timeout_s`.

        Raises what `open` raises, Unreachable, and SpecMismatch.
        """
        policy = cls.open(
            bundle,
            server,
            unnorm_key=unnorm_key,
            robot=robot,
            scheme=scheme,
            image_pipeline=image_pipeline,
            camera_transform=camera_transform,
            action_transform=action_transform,
            security=security,
            threads=threads,
            encoder=encoder,
            provider=provider,
        )
        try:
            policy.handshake(connect_timeout_s)
        except BaseException:
            policy.close()
            raise
        return policy

    def handshake(self, timeout_s: float = 5.0) -> ServerDescription:
        """Compare the server's model with the bundle's; again after SpecMismatch, when the server was restarted.

        Raises Unreachable, SpecMismatch naming the fields that differ, ConfigError when the scheme is not accepted.
        """
        self.server, self._last_tokens = None, ()  # another server's tokens need not be in this one's vocabulary
        server = self._link.describe(timeout_s)
        check_same_model(self.model.spec, server.spec)
        check_accepted(self.rungs[0].scheme, server)
        if server.draining:
            raise Unreachable("the server is draining: it finishes its sessions and goes away; connect to another")
        self.server = server
        return server

    def act(self, observation: Observation, *, deadline_s: float = 1.0, rung: Rung | None = None) -> ActionChunk:
        """The action for an observation, or an error within `deadline_s` seconds of this call; nothing is retried.

        rung: one of `rungs`, for this call only: a fallback ladder changes it from frame to frame. None is the best.
        Raises ObservationError, a LinkError (DeadlineMissed when late), CodecError, BundleError, ConfigError.
        """
        started = self._clock()
        self._sequence += 1
        if self.server is None:
            raise SpecMismatch(f"frame {self._sequence}: no model is agreed with the server; call handshake() first")
        rung = self.rungs[0] if rung is None else rung
        check_accepted(rung.scheme, self.server)

        images = self._prepare(observation)
        prepared = self._clock()
        embeddings = [self._encoder.embed(image) for image in images]
        embedded = self._clock()
        call = self._call(observation, embeddings, rung)
        sent = self._clock()

        reply = self._infer(call, deadline_s, sent - started)
        answered = self._clock()
        chunk = self._chunk(observation, call, reply)
        self._last_tokens = reply.tokens
        finished = self._clock()
        server = reply.stages
        stages = StageTimes(
            preprocess_ms=(prepared - started) * 1e3,
            encode_ms=(embedded - prepared) * 1e3,
            compress_ms=(sent - embedded) * 1e3,
            network_ms=max(0.0, (answered - sent) * 1e3 - server.total_ms),
            decode_payload_ms=server.decode_payload_ms,
            queue_ms=server.queue_ms,
            prefill_ms=server.prefill_ms,
            decode_ms=server.decode_ms,
            detokenize_ms=(finished - answered) * 1e3,
            total_ms=(finished - started) * 1e3,
        )
        return dataclasses.replace(chunk, stages=stages)

    def close(self) -> None:
        """Close the link; the policy can't be used afterwards."""
        self.server = None
        self._link.close()

    def __enter__(self) -> EdgePolicy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, observation: Observation) -> list[Image]:
        spec = self.model.spec
        check_instruction(observation.instruction)
        _check_state(observation.state)
        if not 1 <= len(observation.images) <= spec.max_cameras:
            raise ObservationError(f"{len(observation.images)} camera images; this model takes 1..{spec.max_cameras}")
        return [self._square(check_image(image)) for image in observation.images]

    def _call(self, observation: Observation, embeddings: list[FloatArray], rung: Rung) -> InferCall:
        return InferCall(
            fingerprint=self.model.spec.fingerprint,
            session=self._session,
            sequence=self._sequence,
            robot=self._robot,
            instruction=observation.instruction,
            cameras=tuple(
                CameraPayload(f"camera{index}", encode(patches, rung.scheme))
                for index, patches in enumerate(embeddings)
            ),
            action_dims=self.model.statistics.dims,
            chunk_length=self.model.spec.chunk_length,
            state=observation.state,
            # An action resembles the last one: a guess that the server verifies, and that never changes the answer.
            draft_tokens=self._last_tokens,
        )

    def _infer(self, call: InferCall, deadline_s: float, spent_s: float) -> Reply:
        remaining_s = deadline_s - spent_s
        if not remaining_s > 0:
            raise DeadlineMissed(
                f"frame {call.sequence}: not sent, encoding took {spent_s * 1e3:.0f} ms "
                f"of a deadline of {deadline_s * 1e3:.0f} ms"
            )
        try:
            return self._link.infer(call, remaining_s)
        except DeadlineMissed as error:
            raise DeadlineMissed(f"{call.miss(deadline_s)}, sent after {spent_s * 1e3:.0f} ms") from error

    def _chunk(self, observation: Observation, call: InferCall, reply: Reply) -> ActionChunk:
        spec, statistics = self.model.spec, self.model.statistics
        if reply.chunk is None:
            detokenized = detokenize(reply.tokens, vocab_size=spec.action_vocab_size, bins=spec.action_bins)
        else:
            detokenized = Detokenized(reply.chunk.astype(np.float64), ())
        normalized = detokenized.normalized.reshape(spec.chunk_length, statistics.dims)
        actions = self._transform(statistics.unnormalize(normalized))
        if not np.isfinite(actions).all():  # statistics near the end of float64, or a head gone wild
            raise ServerFault(f"frame {call.sequence}: the action is not finite with statistics {statistics.key!r}")
        return ActionChunk(
            first_step=observation.step,
            actions=actions,
            source=SOURCE,
            tokens=reply.tokens,
            clipped=detokenized.clipped,
            wire_bytes=call.wire_bytes,
            hints=ServerHints(reply.load.queued, reply.load.busy, reply.draining),
        )


def _conventions(
    model: EdgeModel, image_pipeline: str | None, camera_transform: str, action_transform: str
) -> tuple[Callable[[Image], Image], Callable[[ActionArray], ActionArray]]:
    """Frame to square image, and un-normalised actions to the robot's. Raises ConfigError on a name that is unknown."""
    pipeline = model.image_pipeline if image_pipeline is None else parse_image_pipeline(image_pipeline)
    square = build_pipeline(pipeline, camera_transform, model.spec, model.fill)
    return square, find_transform(action_transform, model.statistics.dims)


def _check_state(state: FloatArray | None) -> None:
    if state is None:
        return
    if state.ndim != 1 or state.size > MAX_STATE_DIMS or not np.isfinite(state).all():
        raise ObservationError(f"state has shape {state.shape}; expected at most {MAX_STATE_DIMS} finite numbers")
