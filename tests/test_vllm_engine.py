"""The engine on vLLM, with a stand-in for the library: what becomes of its outputs, failures and cancellations."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from splitvla_cloud.__main__ import build_parser
from splitvla_cloud.engine.interface import Frame, Outcome, Tokens
from splitvla_cloud.engine.vllm_engine import VllmEngine
from splitvla_cloud.precision import Precision
from splitvla_cloud.server import ServerSettings, load_backbone
from splitvla_cloud.vllm_backbone import VllmBackbone, _start
from splitvla_shared.errors import ConfigError, EarlyStop, RequestRejected, ServerFault
from tests.cloud_fakes import fake_bundle

DIMS, HIDDEN, VOCABULARY, EOS = 4, 8, 50, 2


@dataclass
class FakeLibrary:
    """vLLM's LLMEngine, as far as it is used: each step says the next id of each request, or raises.

    A request's first patch says what becomes of it: the ids that follow it count up from there; `broken` fails every
    step that it is in, `not_finite` has log probabilities that are none, `ended` is ended early by the library.
    """

    broken, not_finite, ended = 40, 41, 42
    requests: dict[str, tuple[int, int]] = field(default_factory=dict)
    said: dict[str, int] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    error: Exception = field(default_factory=lambda: RuntimeError("no such kernel"))
    prompts: list[torch.Tensor] = field(default_factory=list)
    cleaned: int = 0

    def add_request(self, request_id: str, prompt: Any, params: tuple[int, int]) -> str:
        assert prompt["type"] == "embeds"
        self.prompts.append(prompt["prompt_embeds"])
        self.requests[request_id] = (int(prompt["prompt_embeds"][1, 0]), params[0])
        self.said[request_id] = 0
        return f"{request_id}-internal"

    def step(self) -> list[Any]:
        self.steps.append(len(self.requests))
        if any(first == self.broken for first, _ in self.requests.values()):
            raise self.error
        outputs = []
        for name, (first, count) in list(self.requests.items()):
            self.said[name] += 1
            token = first + self.said[name] - 1
            logprob = math.nan if first == self.not_finite else -0.1
            finished = self.said[name] == count or first == self.ended
            completion = SimpleNamespace(
                token_ids=[token],
                logprobs=[{token: SimpleNamespace(logprob=logprob)}],
                finish_reason="error" if first == self.ended else None,
            )
            outputs.append(SimpleNamespace(request_id=name, outputs=[completion], finished=finished))
            if finished:
                del self.requests[name]
        return outputs

    def abort_request(self, request_ids: list[str]) -> None:
        for name in request_ids:
            self.requests.pop(name, None)

    def collective_rpc(self, method: Callable[[Any], None]) -> None:
        method(self)


def clean(library: Any) -> None:
    library.cleaned += 1


@pytest.fixture
def library() -> FakeLibrary:
    return FakeLibrary()


@pytest.fixture
def engine(library: FakeLibrary) -> VllmEngine:
    embeddings = torch.arange(VOCABULARY, dtype=torch.float32)[:, None].repeat(1, HIDDEN)
    return VllmEngine(
        library,
        embeddings,
        lambda count, logprobs: (count, logprobs),
        clean,
        capacity=3,
        tokens=20,
        eos=frozenset([EOS]),
    )


def frame(first: int, patches: int = 2, width: int = HIDDEN) -> Frame:
    shown = np.full((patches, width), first, dtype=np.float32)
    return Frame(first, 1, (1, 7, 9), shown, DIMS, math.inf, draft=(first, 0, 0))


def served(engine: VllmEngine, *frames: Frame) -> dict[int, Tokens | Exception]:
    for each in frames:
        engine.admit(each)
    ended: list[Outcome] = []
    while len(ended) < len(frames):
        ended += engine.step()
    return {outcome.frame.session: outcome.result for outcome in ended}


def ids(result: Tokens | Exception) -> tuple[int, ...]:
    assert isinstance(result, Tokens)
    return result.ids


def test_frames_of_several_robots_share_every_step(engine: VllmEngine, library: FakeLibrary) -> None:
    results = served(engine, frame(10), frame(20), frame(30))
    assert {session: ids(result) for session, result in results.items()} == {
        10: (10, 11, 12, 13),
        20: (20, 21, 22, 23),
        30: (30, 31, 32, 33),
    }
    assert library.steps == [3] * DIMS
    assert library.cleaned == 0


def test_the_golden_probe_gets_a_whole_answer_from_it(engine: VllmEngine) -> None:
    """Where an early end is an id like any other."""
    backbone = VllmBackbone(engine, "fp32", "a fake", range(VOCABULARY))
    patches = np.full((2, HIDDEN), EOS - 1, dtype=np.float32)
    assert backbone.full_answer((1, 7, 9), patches, DIMS) == (1, EOS, 3, 4)
    assert backbone.allowed == range(engine.vocab_size)


def test_the_patches_lie_behind_the_first_id_and_drafts_are_left_out(engine: VllmEngine, library: FakeLibrary) -> None:
    (answer,) = served(engine, frame(10)).values()
    assert library.prompts[0][:, 0].tolist() == [1, 10, 10, 7, 9]
    assert isinstance(answer, Tokens)
    assert answer.accepted_draft_tokens == 0


def test_an_id_that_ends_the_answer_ends_the_frame_and_its_request(engine: VllmEngine, library: FakeLibrary) -> None:
    results = served(engine, frame(0), frame(10))
    assert isinstance(results[0], EarlyStop)
    assert ids(results[10]) == (10, 11, 12, 13)
    assert not library.requests


def test_a_frame_that_is_not_finite_fails_alone_and_leaves_the_cache_clean(
    engine: VllmEngine, library: FakeLibrary
) -> None:
    results = served(engine, frame(library.not_finite), frame(10))
    assert isinstance(results[library.not_finite], ServerFault)
    assert ids(results[10]) == (10, 11, 12, 13)
    assert library.cleaned == 1


def test_a_step_that_fails_is_tried_frame_by_frame(engine: VllmEngine, library: FakeLibrary) -> None:
    results = served(engine, frame(10), frame(library.broken), frame(20))
    assert results[library.broken] is library.error
    assert (ids(results[10]), ids(results[20])) == ((10, 11, 12, 13), (20, 21, 22, 23))
    assert not library.requests
    assert ids(served(engine, frame(30))[30]) == (30, 31, 32, 33)


def test_running_out_of_memory_is_told_with_a_remedy(engine: VllmEngine, library: FakeLibrary) -> None:
    library.error = torch.OutOfMemoryError("CUDA out of memory")
    (result,) = served(engine, frame(library.broken)).values()
    assert isinstance(result, ServerFault)
    assert "smaller max_batch" in str(result)


def test_an_answer_that_the_library_ends_too_soon_is_a_fault(engine: VllmEngine, library: FakeLibrary) -> None:
    (result,) = served(engine, frame(library.ended)).values()
    assert isinstance(result, ServerFault)
    assert "behind 1 of 4 ids: error" in str(result)


def test_a_cancelled_frames_place_is_free_at_once(engine: VllmEngine, library: FakeLibrary) -> None:
    frames = [frame(10), frame(20), frame(30)]
    for each in frames:
        engine.admit(each)
    engine.step()
    with pytest.raises(RequestRejected, match="3 places free"):
        engine.admit(frame(5))
    engine.cancel(frames[1])
    engine.cancel(frames[1])
    engine.admit(frame(5))
    ended = [outcome.frame.session for _ in range(DIMS) for outcome in engine.step()]
    assert ended == [10, 30, 5]
    assert not library.requests


def test_what_the_model_cannot_take_is_refused(engine: VllmEngine, library: FakeLibrary) -> None:
    for wrong, told in ((frame(10, width=7), r"\(2, 7\)"), (frame(10, patches=14), "21 tokens, the model takes 20")):
        with pytest.raises(RequestRejected, match=told):
            engine.admit(wrong)
    assert not library.requests
    assert engine.step() == []


def test_a_machine_without_vllm_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"engine vllm needs vLLM.*splitvla\[cloud,vllm\].*or use engine torch"):
        VllmBackbone.load(fake_bundle(tmp_path), "fp32", "cpu")


@pytest.mark.parametrize("precision", ["int8", "nf4", "fp8", "int4"])
def test_a_precision_that_vllm_is_not_asked_for_is_refused(tmp_path: Path, precision: Precision) -> None:
    with pytest.raises(ConfigError, match=f"precision {precision} is not offered with engine vllm; use fp32 or bf16"):
        VllmBackbone.load(fake_bundle(tmp_path), precision, "cpu")


def test_a_library_that_does_not_fit_is_a_matter_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(arguments: object) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    module = SimpleNamespace(LLMEngine=SimpleNamespace(from_engine_args=scarce))
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.llm_engine", module)
    config = SimpleNamespace(num_hidden_layers=1, num_key_value_heads=1, head_dim=8)
    vllm, bundle = SimpleNamespace(EngineArgs=dict), fake_bundle(tmp_path)
    with pytest.raises(ConfigError, match=r"with max_batch 8 does not fit cuda:0 \(.*ALLOC_FAILED.*smaller max_batch"):
        _start(vllm, bundle, config, torch.bfloat16, "cuda:0", capacity=8, tokens=512)


def test_the_engine_is_a_setting_of_serve(tmp_path: Path) -> None:
    assert build_parser().parse_args(["serve", "--engine", "vllm"]).engine == "vllm"
    assert ServerSettings().engine == "torch"
    settings = ServerSettings(engine="vllm", precision="int8", device="cpu")
    with pytest.raises(ConfigError, match="not offered with engine vllm"):
        load_backbone(fake_bundle(tmp_path), settings)


def test_nothing_of_vllm_may_listen_on_or_ask_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    sockets = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for name in ("VLLM_HOST_IP", "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE", "VLLM_ENABLE_V1_MULTIPROCESSING", *sockets):
        monkeypatch.setenv(name, "")
    with pytest.raises(ConfigError):
        VllmBackbone.load(fake_bundle(tmp_path), "fp32", "cpu")
    assert os.environ["VLLM_HOST_IP"] == "127.0.0.1"
    assert os.environ["VLLM_NO_USAGE_STATS"] == os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert [os.environ[name] for name in sockets] == ["lo", "lo"]
