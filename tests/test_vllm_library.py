"""The engine on the real vLLM, where it is installed: our own engine's tokens, and no fault passes to another robot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from splitvla_cloud.backbone import Backbone
from splitvla_cloud.engine.interface import Frame, Outcome, Tokens
from splitvla_cloud.engine.torch_engine import TorchEngine
from splitvla_cloud.engine.vllm_engine import VllmEngine
from splitvla_cloud.golden import INSTRUCTION, check_backbone
from splitvla_cloud.prompt import Prompt
from splitvla_cloud.vllm_backbone import VllmBackbone
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.errors import ServerFault

# vLLM warns of much that is its own.
pytestmark = pytest.mark.filterwarnings("ignore")

DIMS, CAPACITY, CASES = 7, 4, 200
TRAINED = Path(__file__).parent.parent / "benchmarks" / "world" / "checkpoint"


@pytest.fixture(scope="module")
def device() -> str:
    """The one that this vLLM is built for."""
    pytest.importorskip("vllm", reason="vLLM is not installed (an optional extra)", exc_type=ImportError)
    from vllm.platforms import current_platform

    return "cpu" if current_platform.device_type == "cpu" else "cuda:0"


@pytest.fixture(scope="module", params=["tiny", "trained"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Cloud halves of the random checkpoint and of the one that was trained in the simulator."""
    pytest.importorskip("vllm", reason="vLLM is not installed (an optional extra)", exc_type=ImportError)
    if request.param == "tiny":
        return open_bundle(request.getfixturevalue("tiny_bundles") / "cloud", "cloud")
    from splitvla_cloud.split import split

    out = tmp_path_factory.mktemp("trained")
    split(TRAINED, out)
    return open_bundle(out / "cloud", "cloud")


@pytest.fixture(scope="module")
def ours(bundle: Bundle, device: str) -> TorchEngine:
    return Backbone.load(bundle, "fp32", device, capacity=CAPACITY).engine


@pytest.fixture(scope="module")
def vllm(bundle: Bundle, device: str) -> Iterator[VllmBackbone]:
    from vllm.distributed import cleanup_dist_env_and_memory

    yield VllmBackbone.load(bundle, "fp32", device, capacity=CAPACITY)
    cleanup_dist_env_and_memory()


def some_frame(bundle: Bundle, seed: int) -> Frame:
    random = np.random.default_rng(seed)
    prompt = (1, *(int(number) for number in random.integers(3, 1000, int(random.integers(4, 40)))))
    shape = (bundle.spec.patches, bundle.spec.embed_dim)
    patches = random.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
    return Frame(seed, 1, prompt, patches, DIMS, math.inf)


def served(engine: TorchEngine | VllmEngine, frames: list[Frame]) -> dict[int, Tokens | Exception]:
    """Frames join while others are decoded; no id ends an answer."""
    waiting, inside = list(frames), 0
    ended: list[Outcome] = []
    while len(ended) < len(frames):
        if waiting and inside < CAPACITY:
            engine.admit(waiting.pop(0), frozenset())
            inside += 1
        out = engine.step()
        inside -= len(out)
        ended += out
    return {outcome.frame.session: outcome.result for outcome in ended}


def tokens(results: dict[int, Tokens | Exception]) -> dict[int, object]:
    return {session: result.ids if isinstance(result, Tokens) else result for session, result in results.items()}


def test_vllm_gives_the_tokens_of_our_engine_for_frames_that_join_at_any_time(
    bundle: Bundle, ours: TorchEngine, vllm: VllmBackbone
) -> None:
    frames = [some_frame(bundle, seed) for seed in range(CASES)]
    assert tokens(served(vllm.engine, frames)) == tokens(served(ours, frames))


def test_the_served_bundle_passes_its_golden_probe_and_is_warmed_up(
    bundle: Bundle, vllm: VllmBackbone, device: str
) -> None:
    check_backbone(vllm, Prompt.load(bundle.path, bundle.spec).ids(INSTRUCTION), bundle.spec, bundle.path)
    vllm.warm_up(bundle.spec.patches, DIMS)
    assert set(vllm.pass_costs) <= {1, 2, 4}
    assert min(vllm.pass_costs.values()) > 0
    assert vllm.describe().startswith(f"fp32 on {device} by vLLM ")


def test_a_frame_that_is_not_finite_spoils_no_other_and_no_later_one(
    bundle: Bundle, ours: TorchEngine, vllm: VllmBackbone
) -> None:
    frames = [some_frame(bundle, seed) for seed in range(3 * CAPACITY)]
    bad = some_frame(bundle, 999)
    bad.patches[7] = np.nan
    results = tokens(served(vllm.engine, [frames[0], bad, *frames[1:]]))
    assert isinstance(results.pop(bad.session), ServerFault)
    assert results == tokens(served(ours, frames))


def test_a_cancelled_frame_leaves_and_the_others_go_on(bundle: Bundle, ours: TorchEngine, vllm: VllmBackbone) -> None:
    frames = [some_frame(bundle, seed) for seed in range(CAPACITY)]
    for frame in frames:
        vllm.engine.admit(frame, frozenset())
    ended = vllm.engine.step()
    vllm.engine.cancel(frames[1])
    while len(ended) < len(frames) - 1:
        ended += vllm.engine.step()
    expected = tokens(served(ours, [frames[0], *frames[2:]]))
    assert tokens({outcome.frame.session: outcome.result for outcome in ended}) == expected
    assert vllm.engine.step() == []


def test_a_step_that_fails_is_tried_frame_by_frame(
    bundle: Bundle, ours: TorchEngine, vllm: VllmBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's forward pass is made to fail once, in the middle of vLLM's step."""
    runner = vllm.engine._library.model_executor.driver_worker.model_runner  # type: ignore[attr-defined]
    forward, failures = runner._model_forward, iter([MemoryError("out of memory")])

    def scarce(*arguments: object, **options: object) -> object:
        if error := next(failures, None):
            raise error
        return forward(*arguments, **options)

    monkeypatch.setattr(runner, "_model_forward", scarce)
    frames = [some_frame(bundle, seed) for seed in range(2 * CAPACITY)]
    results: dict[int, Tokens | Exception] = {}
    for frame in frames[:CAPACITY]:
        vllm.engine.admit(frame, frozenset())
    while len(results) < CAPACITY:
        results |= {outcome.frame.session: outcome.result for outcome in vllm.engine.step()}
    results |= served(vllm.engine, frames[CAPACITY:])
    assert tokens(results) == tokens(served(ours, frames))
