"""A cloud bundle without a model, and a backbone that obeys the test: the server's tests need no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from splitvla_cloud.engine.interface import Frame, Outcome, Tokens
from splitvla_cloud.server import CloudServer, ServerSettings
from splitvla_shared import codec
from splitvla_shared.bundle import Bundle
from splitvla_shared.errors import SplitVLAError
from splitvla_shared.messages import tensor_to_message
from splitvla_shared.nouns import FloatArray, Scheme
from splitvla_shared.wire import inference_pb2 as pb
from splitvla_shared.wire.inference_pb2_grpc import InferenceStub
from tests.specs import make_spec

WAIT_S = 20.0  # far above what anything here takes; only a failing test waits so long
SPEC = make_spec(
    name="fake", patches=4, embed_dim=64, prompt_template="do {instruction} now", suffix_token_id=9, max_cameras=2
)


def fake_bundle(path: Path) -> Bundle:
    """A folder with a word-level tokenizer that puts `<s>` in front."""
    words = {"<s>": 1, "do": 3, "now": 4, "grasp": 5, "<unk>": 0}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(path / "tokenizer.json"))
    return Bundle(path, "cloud", SPEC)


class FakeBackbone:
    """An engine that answers at once, or holds every pass until `release`; shared with the test's thread.

    Records what reached it: first_values of patches, prompts, drafts; passes: how many frames each pass had.
    """

    vocab_size = 32064
    pass_costs: Mapping[int, float] = {}

    def __init__(
        self, answer: Callable[[FloatArray], tuple[int, ...]] | None = None, held: bool = False, capacity: int = 1
    ) -> None:
        self.capacity = capacity
        self.first_values: list[float] = []
        self.prompts: list[tuple[int, ...]] = []
        self.drafts: list[tuple[int, ...]] = []
        self.passes: list[int] = []
        self.cancelled: list[int] = []
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()
        self._frames: list[Frame] = []
        self._answer = answer or (lambda patches: tuple(range(31900, 31907)))
        if not held:
            self.release.set()

    def describe(self) -> str:
        return "a fake"

    def admit(self, frame: Frame) -> None:
        assert len(self._frames) < self.capacity
        self._frames.append(frame)
        self.first_values.append(float(frame.patches[0, 0]))
        self.prompts.append(frame.prompt_ids)
        self.drafts.append(frame.draft)

    def cancel(self, frame: Frame) -> None:
        if frame in self._frames:
            self._frames.remove(frame)
            self.cancelled.append(frame.sequence)

    def step(self) -> list[Outcome]:
        frames, self._frames = self._frames, []
        self.passes.append(len(frames))
        self.entered.release()
        assert self.release.wait(WAIT_S)
        return [Outcome(frame, self._result(frame)) for frame in frames]

    def _result(self, frame: Frame) -> Tokens | Exception:
        try:
            return Tokens(self._answer(frame.patches)[: frame.dims], 1.0, 2.0, len(frame.draft))
        except (RuntimeError, MemoryError, SplitVLAError) as error:
            return error


def request(sequence: int = 1, value: float = 1.0, **changes: Any) -> pb.InferRequest:
    """A legal request whose patches are all `value`, with fields replaced by `changes`."""
    patches = np.full((SPEC.patches, SPEC.embed_dim), value, dtype=np.float32)
    camera = pb.CameraEmbedding(camera="wrist", tensor=tensor_to_message(codec.encode(patches, Scheme.F32)))
    fields: dict[str, Any] = {
        "fingerprint": SPEC.fingerprint,
        "session": 7,
        "sequence": sequence,
        "robot": "arm",
        "instruction": "grasp",
        "cameras": [camera],
        "action_dims": 7,
    }
    return pb.InferRequest(**(fields | changes))


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """A running server and a channel to it."""

    server: CloudServer
    channel: grpc.aio.Channel
    stub: Any


@contextlib.asynccontextmanager
async def serving(bundle: Bundle, backbone: FakeBackbone, **settings: Any) -> AsyncIterator[Served]:
    """A CloudServer on a real socket around `backbone`."""
    server = CloudServer(bundle, ServerSettings(listen="127.0.0.1:0", **settings), lambda *_: backbone)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Served(server, channel, InferenceStub(channel))  # type: ignore[no-untyped-call]
    finally:
        backbone.release.set()
        await server.stop(0)
