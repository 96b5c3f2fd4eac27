"""Our engine gives transformers' tokens in fp32, whatever the draft and the batch; a fault stays with its frame."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.hf_generate import generate
from splitvla_cloud.backbone import Backbone, load_model
from splitvla_cloud.engine.interface import Frame, Outcome, Tokens
from splitvla_cloud.engine.llama import Shape, additive_mask
from splitvla_shared.bundle import open_bundle
from splitvla_shared.errors import RequestRejected, ServerFault
from splitvla_shared.nouns import FloatArray

DIMS = 7


class Case:
    """A prompt of up to `longest` ids, its patches and the tokens that transformers' generate() gives."""

    def __init__(self, model: object, seed: int, patches: int = 256, longest: int = 40) -> None:
        random = np.random.default_rng(seed)
        length = int(random.integers(4, longest))
        self.prompt = (1, *(int(number) for number in random.integers(3, 1000, length)))
        self.patches: FloatArray = random.standard_normal((patches, 128), dtype=np.float32) * np.float32(0.1)
        self.tokens = tuple(generate(model, self.prompt, self.patches, DIMS))

    def frame(self, draft: tuple[int, ...] = (), patches: FloatArray | None = None) -> Frame:
        return Frame(1, 1, self.prompt, self.patches if patches is None else patches, DIMS, math.inf, draft)


@pytest.fixture(scope="module")
def backbone(tiny_bundles: Path) -> Backbone:
    model, _ = load_model(open_bundle(tiny_bundles / "cloud", "cloud"), "fp32", "cpu")
    return Backbone(model, "fp32", "cpu", capacity=4, tokens=1024)


@pytest.fixture(scope="module")
def cases(backbone: Backbone) -> list[Case]:
    return [Case(backbone._model, seed) for seed in range(8)]


@pytest.fixture(autouse=True)
def no_early_end(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights may prefer </s>; here it is an id like any other."""
    monkeypatch.setattr(backbone.engine, "_eos", frozenset())


def served(
    backbone: Backbone, frames: list[Frame], joining: Callable[[], int] = lambda: 1
) -> dict[Frame, Tokens | Exception]:
    """Before each pass admit as many frames as `joining` says and there is room for; step until all have ended."""
    waiting, inside = list(frames), 0
    ended: list[Outcome] = []
    while len(ended) < len(frames):
        for _ in range(min(joining(), len(waiting), backbone.capacity - inside)):
            backbone.admit(waiting.pop(0))
            inside += 1
        out = backbone.step()
        inside -= len(out)
        ended += out
    return {outcome.frame: outcome.result for outcome in ended}


def some_draft(tokens: tuple[int, ...], others: tuple[int, ...], random: np.random.Generator) -> tuple[int, ...]:
    """None, right, another frame's answer, random, cut short, too long, or wrong at some places of its own."""
    noise = tuple(int(number) for number in random.integers(0, 1088, DIMS))
    wrong = random.random(DIMS) < random.random()
    mixed = tuple(guess if bad else token for token, guess, bad in zip(tokens, noise, wrong, strict=True))
    shorter = mixed[: int(random.integers(1, DIMS))]
    drafts = [(), tokens, others, noise, shorter, mixed, mixed, mixed, (*mixed, *noise)]
    return drafts[int(random.integers(len(drafts)))]


def assert_answered_as_by_transformers(results: dict[Frame, Tokens | Exception], frames: dict[Frame, Case]) -> None:
    for frame, result in results.items():
        assert isinstance(result, Tokens)
        assert result.ids == frames[frame].tokens, f"prompt {frame.prompt_ids}, draft {frame.draft}"
        kept = sum(mine == guess for mine, guess in zip(result.ids, frame.draft, strict=False))
        assert result.accepted_draft_tokens == kept


def test_three_thousand_prompts_drafts_and_batches_give_transformers_tokens(backbone: Backbone) -> None:
    """Few patches, so that many cases fit a second; up to 32 frames at once, some joining while others are decoded."""
    random = np.random.default_rng(0)
    wide = Backbone(backbone._model, "fp32", "cpu", capacity=32, tokens=128)
    wide._eos = wide.engine._eos = frozenset()
    cases = [Case(backbone._model, seed, patches=int(random.integers(1, 24)), longest=80) for seed in range(48)]
    frames: dict[Frame, Case] = {}
    for _ in range(3000):
        case, other = (cases[int(index)] for index in random.integers(0, len(cases), 2))
        frames[case.frame(some_draft(case.tokens, other.tokens, random))] = case
    results = served(wide, list(frames), joining=lambda: int(random.choice([0, 1, 4, 12, 32])))
    assert len(results) == 3000
    assert_answered_as_by_transformers(results, frames)


def test_drafts_and_batches_of_full_size_frames_give_transformers_tokens(backbone: Backbone, cases: list[Case]) -> None:
    random = np.random.default_rng(1)
    frames: dict[Frame, Case] = {}
    for index in random.integers(0, len(cases), 40):
        case = cases[int(index)]
        frames[case.frame(some_draft(case.tokens, cases[0].tokens, random))] = case
    assert_answered_as_by_transformers(served(backbone, list(frames)), frames)


def test_a_right_draft_is_verified_in_a_single_pass(backbone: Backbone, cases: list[Case]) -> None:
    backbone.admit(cases[0].frame(cases[0].tokens))
    (outcome,) = backbone.step()
    assert isinstance(outcome.result, Tokens)
    assert outcome.result.accepted_draft_tokens == DIMS


def test_a_frame_that_is_not_finite_fails_alone_and_leaves_nothing_behind(
    backbone: Backbone, cases: list[Case]
) -> None:
    good, bad = cases[0].frame(), cases[1].frame(patches=np.full((256, 128), np.nan, np.float32))
    results = served(backbone, [bad, good])
    assert isinstance(results[bad], ServerFault)
    assert "not finite" in str(results[bad])
    for _ in range(2 * backbone.capacity):  # every slot again
        result = served(backbone, [cases[2].frame()]).popitem()[1]
        assert isinstance(result, Tokens)
        assert result.ids == cases[2].tokens
    answered = results[good]
    assert isinstance(answered, Tokens)
    assert answered.ids == cases[0].tokens


def test_a_pass_that_runs_out_of_memory_is_tried_frame_by_frame(
    backbone: Backbone, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = backbone.engine._runner.run

    def scarce(rectangles: list[object]) -> object:
        slots = [slot for rectangle in rectangles for slot in rectangle.slots]  # type: ignore[attr-defined]
        if sum(slot < backbone.capacity for slot in slots) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(rectangles)  # type: ignore[arg-type]

    monkeypatch.setattr(backbone.engine._runner, "run", scarce)
    frames = {case.frame(): case for case in cases[:3]}
    for frame, result in served(backbone, list(frames)).items():
        assert isinstance(result, Tokens)
        assert result.ids == frames[frame].tokens


def test_a_frame_that_decodes_behind_free_places_says_the_same(backbone: Backbone, cases: list[Case]) -> None:
    """Decoding computes a line for every place up to the highest one in use; here all but that one are idle."""
    frames = [case.frame() for case in cases[: backbone.capacity]]
    for frame in frames:
        backbone.admit(frame)
    backbone.step()
    for frame in frames[:-1]:
        backbone.cancel(frame)
    ended: list[Outcome] = []
    while not ended:
        ended = backbone.step()
    (result,) = [outcome.result for outcome in ended]
    assert isinstance(result, Tokens)
    assert result.ids == cases[backbone.capacity - 1].tokens


def test_a_cancelled_frames_place_is_free_at_once(backbone: Backbone, cases: list[Case]) -> None:
    frames = [case.frame() for case in cases[: backbone.capacity]]
    for frame in frames:
        backbone.admit(frame)
    with pytest.raises(RequestRejected, match="places free"):
        backbone.admit(cases[0].frame())
    for frame in frames:
        backbone.cancel(frame)
        backbone.cancel(frame)
    assert backbone.step() == []
    result = served(backbone, [cases[5].frame()]).popitem()[1]
    assert isinstance(result, Tokens)
    assert result.ids == cases[5].tokens


def test_patches_of_another_width_are_refused(backbone: Backbone, cases: list[Case]) -> None:
    with pytest.raises(RequestRejected, match=r"\(4, 64\)"):
        backbone.admit(cases[0].frame(patches=np.zeros((4, 64), np.float32)))


class Replayed:
    """Stands for a CUDA graph of a shared pool: computes again from the same buffers into the same result, and spoils
    those of the other graphs."""

    def __init__(self, compute: Callable[[], torch.Tensor], all_of_them: list[Replayed]) -> None:
        self._compute, self.result, self.replays, self._all = compute, compute(), 0, all_of_them
        all_of_them.append(self)

    def replay(self) -> None:
        for other in self._all:
            other.result.fill_(-1)
        self.result.copy_(self._compute())
        self.replays += 1


def graphed(backbone: Backbone) -> Backbone:
    """The same model, with an engine that may capture."""
    twin = Backbone(backbone._model, "fp32", "cpu", capacity=4, tokens=1024)
    twin._eos = twin.engine._eos = frozenset()
    return twin


def test_captured_passes_of_larger_shapes_give_the_same_tokens(backbone: Backbone, cases: list[Case]) -> None:
    """What a GPU would run: padded to a captured length and batch, idle sequences in the spare slot."""
    twin, made = graphed(backbone), list[Replayed]()
    assert twin.engine.capture([319], DIMS, lambda compute: Replayed(compute, made)) == len(made) == 9
    fit = twin.engine._runner.fit
    assert fit(Shape(4, 290, DIMS)) == Shape(4, 320, DIMS)
    assert fit(Shape(3, 290, DIMS)) == Shape(3, 290, DIMS), "a quarter more rows cost more than a graph saves"
    assert fit(Shape(3, 1, 1, 300)).batch == 4, "but few rows cost what one does"
    for case in cases:
        for draft in ((), case.tokens):
            assert twin.infer(case.prompt, case.patches, DIMS, draft).ids == case.tokens
    assert sum(graph.replays for graph in made) > len(cases)


def test_where_a_capture_fails_the_engine_serves_without(
    backbone: Backbone, cases: list[Case], caplog: pytest.LogCaptureFixture
) -> None:
    twin, made = graphed(backbone), list[Replayed]()

    def capture(compute: Callable[[], torch.Tensor]) -> Replayed:
        if len(made) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Replayed(compute, made)

    assert twin.engine.capture([320], DIMS, capture) == len(made) == 4
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Shape(batch=2, length=1, " in caplog.text
    frames = {case.frame(case.tokens): case for case in cases}
    assert_answered_as_by_transformers(served(twin, list(frames), joining=lambda: 2), frames)


class Wrong(Replayed):
    """A graph that replays finite but wrong numbers, as a kernel that reads a stale address would."""

    def replay(self) -> None:
        super().replay()
        self.result[-1, 0] += 1


class NotFinite(Replayed):
    def replay(self) -> None:
        super().replay()
        self.result[:, 1] = 0


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Wrong, r"replayed it gives id \d+ where the pass itself gives id \d+, and so at 1 of"),
        (NotFinite, "not finite"),
    ],
)
def test_a_graph_that_computes_something_else_is_never_served_from(
    backbone: Backbone, cases: list[Case], caplog: pytest.LogCaptureFixture, kind: type[Replayed], says: str
) -> None:
    """The second and the third of nine; what was captured before and after them is used."""
    twin, made = graphed(backbone), list[Replayed]()

    def capture(compute: Callable[[], torch.Tensor]) -> Replayed:
        return (kind if len(made) in (1, 2) else Replayed)(compute, made)

    assert twin.engine.capture([320], DIMS, capture) == 7
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert re.search(says, caplog.text)
    replays = [graph.replays for graph in made]
    frames = {case.frame(): case for case in cases}
    assert_answered_as_by_transformers(served(twin, list(frames)), frames)
    assert [graph.replays - before for graph, before in zip(made, replays, strict=True)][1:3] == [0, 0]
    assert sum(graph.replays for graph in made) > sum(replays)


def test_a_graph_that_can_t_be_replayed_is_never_served_from(backbone: Backbone, cases: list[Case]) -> None:
    """A capture ends well, and its first launch has no memory: then there is no use in further ones."""

    class Fails(Replayed):
        def replay(self) -> None:
            raise RuntimeError("CUDA error: out of memory")

    twin, made = graphed(backbone), list[Replayed]()
    kinds = iter((Replayed, Replayed, Fails))
    assert twin.engine.capture([320], DIMS, lambda compute: next(kinds)(compute, made)) == 2
    frames = {case.frame(): case for case in cases}
    assert_answered_as_by_transformers(served(twin, list(frames)), frames)


def test_what_a_wrong_graph_left_in_the_cache_is_cleared(backbone: Backbone, cases: list[Case]) -> None:
    class Poisons(Replayed):
        def replay(self) -> None:
            super().replay()
            twin.engine._cache._values.fill_(math.nan)
            self.result[:, 1] = 0

    twin, made = graphed(backbone), list[Replayed]()
    twin.engine.capture([320], DIMS, lambda compute: Poisons(compute, made))
    assert torch.isfinite(twin.engine._cache._values[:, : 4 * 1025]).all()
    assert twin.infer(cases[0].prompt, cases[0].patches, DIMS).ids == cases[0].tokens


def test_a_graph_is_tried_on_a_cache_that_holds_something(backbone: Backbone) -> None:
    """On an empty one a decode that reads nothing could not be told from one that reads what is there."""

    class ReadsNothing(Replayed):
        def replay(self) -> None:
            cache = twin.engine._cache
            kept = cache._keys.clone(), cache._values.clone()
            cache._keys.zero_(), cache._values.zero_()
            super().replay()
            cache._keys[:], cache._values[:] = kept

    twin, made = graphed(backbone), list[Replayed]()
    assert twin.engine.capture([320], DIMS, lambda compute: ReadsNothing(compute, made)) == 3, "prefills read no cache"
    assert len(made) == 9


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),  # the driver's: a kernel's module, a graph's launch
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: Error code 12 (Cannot allocate memory)"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_a_frame_without_memory_gives_it_back_and_leaves_nothing_that_the_next_one_reads(
    backbone: Backbone, cases: list[Case], monkeypatch: pytest.MonkeyPatch, error: Exception, says: bool
) -> None:
    cache, tries = backbone.engine._cache, []

    def scarce(rectangles: list[object]) -> object:
        cache._values.fill_(math.nan)  # what its first layers wrote before memory was short
        raise error

    def empty_cache() -> None:
        tries.append(True)
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    kept = cache._keys.clone(), cache._values.clone()
    with monkeypatch.context() as patched:
        patched.setattr(backbone.engine._runner, "run", scarce)
        ((_, result),) = served(backbone, [cases[0].frame()]).items()
    cleared = torch.isfinite(cache._values[0]).flatten(1).all(dim=1).sum()
    cache._keys[:], cache._values[:] = kept
    assert isinstance(result, Exception)
    assert ("out of memory on cpu" in str(result)) is says
    assert bool(tries) is says
    assert cleared == cache._stride


def test_what_a_pass_without_memory_had_computed_is_freed_before_the_next_try(
    backbone: Backbone, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error holds the frames that it came through, and they what they had computed: memory that a try would lack."""
    computed: list[weakref.ref[torch.Tensor]] = []
    held: list[bool] = []
    run = backbone.engine._runner.run

    def scarce(rectangles: list[object]) -> object:
        if not computed:
            gate_up = torch.zeros(1)
            computed.append(weakref.ref(gate_up))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(rectangles)  # type: ignore[arg-type]

    monkeypatch.setattr(backbone.engine._runner, "run", scarce)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append(computed[0]() is not None))
    frames = {case.frame(): case for case in cases[:2]}
    assert_answered_as_by_transformers(served(backbone, list(frames), joining=lambda: 2), frames)
    assert held == [False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [7, 295, 384])
def test_the_mask_for_cuda_hides_what_the_plain_one_hides(keys: int, dtype: torch.dtype) -> None:
    until = torch.tensor([[0, 3, 6], [2, 2, 100]])
    mask = additive_mask(until, keys, dtype)
    assert (mask.shape, mask.dtype) == ((2, 1, 3, keys), dtype)
    assert torch.equal(mask == 0, (torch.arange(keys) <= until[:, :, None])[:, None])
    assert torch.equal(mask == -torch.inf, mask != 0)
    assert [stride % 8 for stride in mask.stride()] == [0, 0, 0, 1], "torch would pad it in every layer"
