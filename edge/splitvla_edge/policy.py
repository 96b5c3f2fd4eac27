"""EdgePolicy: one observation in, one action (or chunk of actions) out, through the split model."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from splitvla_edge.answers import Answer, normalized_answer
from splitvla_edge.embedder import Embedded, Embedder, Encoder
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.encoding.probe import probed
from splitvla_edge.encoding.providers import AUTO, Selection
from splitvla_edge.link.calls import InferCall, Reply, ServerDescription
from splitvla_edge.link.exchange import Deadline, Exchanged, exchange
from splitvla_edge.link.grpc_link import GrpcLink, check_addresses
from splitvla_edge.link.security import Security
from splitvla_edge.link.servers import ServerPool
from splitvla_edge.model import EdgeModel, check_accepted, check_same_model, read_edge_model, read_ladder
from splitvla_edge.observations import check_observation
from splitvla_edge.payloads import FrameId, PayloadCoder, differs
from splitvla_edge.policy_options import PolicyOptions, check_hedge
from splitvla_edge.transforms import find_transform
from splitvla_shared.actions import Detokenized
from splitvla_shared.bundle import open_bundle
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.encoders import FP32
from splitvla_shared.errors import (
    BundleError,
    CodecError,
    ConfigError,
    ServerFault,
    SpecMismatch,
    Unreachable,
)
from splitvla_shared.image_pipelines import parse_image_pipeline
from splitvla_shared.limits import MAX_ROBOT_NAME_CHARS
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
from splitvla_shared.preprocess.image_pipelines import build_pipeline
from splitvla_shared.rungs import Rung, plain_ladder

if TYPE_CHECKING:
    from typing_extensions import Unpack

SOURCE = "cloud"
# What carries a frame that the codec can't: close to exact, and half of bf16's bytes on a link that may be slow.
_UNCALIBRATED = Rung("int8", Scheme.INT8, 0)


class Link(Protocol):
    @property
    def address(self) -> str:
        """Of the server in use."""

    def describe(self, timeout_s: float) -> ServerDescription:
        """What the server serves; Unreachable when none answers in time."""

    def infer(self, request: InferCall, deadline_s: float) -> Reply:
        """A checked reply to this request, or a LinkError."""

    def close(self) -> None: ...


class EdgePolicy:
    """The robot's half of the policy. Owned by one thread of the perception process.

    Mutable state: sequence number and tokens of the last call, what the server said in the last handshake, and the
    frames that servers hold.
    selection says what runs the encoder, where `open` opened it. rungs: what a frame may be sent with, best first.
    sent_as: the name of what the last frame was sent with, which is another rung where the codec couldn't carry it.
    on_answer: told of every answer by `tell_answer`. embed: see Embedder; any thread may call it.
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
        square, self._transform = _conventions(model, image_pipeline, camera_transform, action_transform)
        self.model = model
        self.rungs = rungs or plain_ladder(scheme, (model.spec.patches, model.spec.embed_dim))
        self.sent_as = ""
        self.server: ServerDescription | None = None
        self.selection: Selection | None = None
        self.embed = Embedder(square, encoder, clock, tables)
        self.on_answer: list[Callable[[Answer], None]] = []
        self._untold: Answer | None = None
        self._link, self._robot, self._clock = link, robot, clock
        self._session = secrets.randbits(64)
        self._sequence = 0
        self._payloads = PayloadCoder(tables)
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
        check_hedge(hedge_ms, server)
        first = GrpcLink(addresses[0], security=security)
        link: Link = first
        with contextlib.ExitStack() as on_error:
            on_error.callback(lambda: link.close())
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
            on_error.pop_all()
        policy.selection = onnx.selection
        return policy

    @classmethod
    def connect(
        cls, bundle: Path | str, server: str, *, connect_timeout_s: float = 5.0, **options: Unpack[PolicyOptions]
    ) -> EdgePolicy:
        """`open`, then agree on the model with the server at HOST:PORT within `connect_timeout_s`.

        Raises what `open` raises, Unreachable, and SpecMismatch.
        """
        policy = cls.open(bundle, server, **options)
        with contextlib.ExitStack() as on_error:
            on_error.callback(policy.close)
            policy.handshake(connect_timeout_s)
            on_error.pop_all()
        return policy

    def handshake(self, timeout_s: float = 5.0) -> ServerDescription:
        """Compare the server's model with the bundle's; again after SpecMismatch, when the server was restarted.

        Raises Unreachable, SpecMismatch naming the fields that differ, ConfigError when the scheme is not accepted.
        """
        self.server, self._last_tokens = None, ()  # another server's tokens need not be in this one's vocabulary
        self._payloads.forget()
        server = self._link.describe(timeout_s)
        check_same_model(self.model.spec, server.spec)
        check_accepted(self.rungs[0].scheme, server)
        if server.draining:
            raise Unreachable("the server is draining: it finishes its sessions and goes away; connect to another")
        self.server = server
        return server

    def act(self, observation: Observation, *, deadline_s: float = 1.0, rung: Rung | None = None) -> ActionChunk:
        """The action for an observation, or an error within `deadline_s` seconds of this call.

        Nothing is retried, but for a frame that was sent as a difference from one which the server turns out not to
        hold: while there is time, it is sent again, whole. rung: one of `rungs`, for this call only: a fallback ladder
        changes it from frame to frame. None is the best. A frame that a codec rung can't carry, because it is unlike
        all that were calibrated with, goes as int8.
        Raises ObservationError, a LinkError (DeadlineMissed when late, KeyFrameNeeded when it was too late to send the
        frame again), CodecError, BundleError, ConfigError.
        """
        started = self._clock()
        self._sequence += 1
        if self.server is None:
            raise SpecMismatch(f"frame {self._sequence}: no model is agreed with the server; call handshake() first")
        rung = self.rungs[0] if rung is None else rung
        check_accepted(rung.scheme, self.server)

        check_observation(observation, self.model.spec)
        call, seen, embedded = self._encoded(observation, rung)
        sent = self._clock()

        exchanged = exchange(self._link, call, Deadline(started, deadline_s, self._clock), self._payloads.forget)
        answered = self._clock()
        reply = exchanged.reply
        self._payloads.acknowledge(reply.server, reply.sequence)
        said = normalized_answer(reply, self.model)
        chunk = self._chunk(observation, exchanged, said)
        # A token that is no action may be outside the vocabulary: as a draft it would have every later frame refused.
        self._last_tokens = () if said.clipped else reply.tokens
        finished = self._clock()
        server = reply.stages
        stages = StageTimes(
            preprocess_ms=seen.preprocess_s * 1e3,
            encode_ms=(embedded - started - seen.preprocess_s) * 1e3,
            compress_ms=(sent - embedded) * 1e3,
            network_ms=max(0.0, (answered - sent) * 1e3 - server.total_ms),
            decode_payload_ms=server.decode_payload_ms,
            queue_ms=server.queue_ms,
            prefill_ms=server.prefill_ms,
            decode_ms=server.decode_ms,
            detokenize_ms=(finished - answered) * 1e3,
            total_ms=(finished - started) * 1e3,
        )
        if self.on_answer:
            self._untold = Answer(observation, seen.patches, said.normalized, reply.tokens)
        return dataclasses.replace(chunk, stages=stages)

    def tell_answer(self) -> None:
        """Tell whoever listens of the last answer. Apart from `act`, so that its action can be on its way first."""
        answer, self._untold = self._untold, None
        if answer is not None:
            for tell in self.on_answer:
                tell(answer)

    def to_robot(self, normalized: ActionArray) -> ActionArray:
        """(length, dims) in [-1, 1] to actions in the robot's units."""
        return self._transform(self.model.statistics.unnormalize(normalized))

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

    def _encoded(self, observation: Observation, rung: Rung) -> tuple[InferCall, Embedded, float]:
        """The call, what was seen for it, and when the encoder was done."""
        coded = rung.codec_rung is not None
        # Whoever is told of answers is told what they are answers to.
        seen = self.embed(observation.images, patches=not coded or bool(self.on_answer), coefficients=coded)
        embedded = self._clock()
        cameras = seen.coefficients if coded else seen.patches
        try:
            return self._call(observation, cameras, rung, self._link.address), seen, embedded
        except CodecError:
            if not coded:
                raise
            return self._encoded(observation, _UNCALIBRATED)

    def _call(
        self, observation: Observation, cameras: tuple[FloatArray, ...], rung: Rung, server: str | None
    ) -> InferCall:
        """server: whose references the payloads may build on."""
        payloads = self._payloads.encode(cameras, rung, FrameId(self._session, self._sequence), server)
        self.sent_as = rung.name
        call = InferCall(
            fingerprint=self.model.spec.fingerprint,
            session=self._session,
            sequence=self._sequence,
            robot=self._robot,
            instruction=observation.instruction,
            cameras=payloads,
            action_dims=self.model.statistics.dims,
            chunk_length=self.model.spec.chunk_length,
            state=observation.state,
            # An action resembles the last one: a guess that the server verifies, and that never changes the answer.
            draft_tokens=self._last_tokens,
        )
        if server is None or not differs(payloads):
            return call

        def whole() -> InferCall:
            self._sequence += 1  # a sequence never names two payloads
            try:
                return self._call(observation, cameras, rung, None)
            except CodecError:  # a difference may be sayable where the frame itself is not
                return self._encoded(observation, _UNCALIBRATED)[0]

        return dataclasses.replace(call, key_frame=whole, held_by=server)

    def _chunk(self, observation: Observation, exchanged: Exchanged, detokenized: Detokenized) -> ActionChunk:
        reply = exchanged.reply
        actions = self.to_robot(detokenized.normalized)
        if not np.isfinite(actions).all():  # statistics near the end of float64, or a head gone wild
            key = self.model.statistics.key
            raise ServerFault(f"frame {reply.sequence}: the action is not finite with statistics {key!r}")
        return ActionChunk(
            first_step=observation.step,
            actions=actions,
            source=SOURCE,
            tokens=reply.tokens,
            clipped=detokenized.clipped,
            wire_bytes=exchanged.wire_bytes,
            hints=ServerHints(reply.load.queued, reply.load.busy, reply.draining),
        )


def _conventions(
    model: EdgeModel, image_pipeline: str | None, camera_transform: str, action_transform: str
) -> tuple[Callable[[Image], Image], Callable[[ActionArray], ActionArray]]:
    """Frame to square image, and un-normalised actions to the robot's. Raises ConfigError on a name that is unknown."""
    pipeline = model.image_pipeline if image_pipeline is None else parse_image_pipeline(image_pipeline)
    square = build_pipeline(pipeline, camera_transform, model.spec, model.fill)
    return square, find_transform(action_transform, model.statistics.dims)
