"""The engine's passes of the 7B, traced on tensors that say they lie on cuda:0 and hold nothing.

On a machine without a GPU this finds what would fail or wait there: operands on different devices, shapes and layouts
that torch._scaled_mm refuses, host memory inside a pass that is to be captured, and values that Python waits for.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.backbone.models import PRESETS, empty_llama
from splitvla_cloud.engine import fp8, int4
from splitvla_cloud.engine.interface import Frame, Outcome, Tokens
from splitvla_cloud.engine.llama import Llama, Shape
from splitvla_cloud.engine.torch_engine import TorchEngine
from splitvla_cloud.precision import NUMERICS, Precision

GPU, DIMS, PATCHES, ROBOTS = "cuda:0", 7, 256, 16
# Layers are alike; their widths are the 7B's.
SIZES = dataclasses.replace(PRESETS["7b"], llm_layers=2)
# c10::DeviceType.
_CUDA, _META, _TYPES = 1, 14, 21


@contextmanager
def device_guard() -> Iterator[None]:
    """A torch without CUDA has no device guard for it, and fails even a view of a fake tensor: the one of "meta", which
    does nothing either, stands in."""
    c10 = Path(torch.__file__).parent / "lib" / "libc10.so"
    if not c10.exists():
        pytest.skip(f"no {c10.name} here, so torch can't be told of a device that it was not built for")
    guards = (ctypes.c_void_p * _TYPES).in_dll(ctypes.CDLL(str(c10)), "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[_CUDA]
    guards[_CUDA] = before or guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = before


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it tensors are shapes, types and devices only; ids that are fetched are 5, and finite. What runs as one
    compiled kernel runs as it is written."""
    monkeypatch.setattr(FakeTensor, "tolist", lambda picked: [[5, 1]] * len(picked), raising=False)
    for module in (fp8, int4):
        monkeypatch.setattr(module, "compiled", lambda function, dynamic: function)
    with device_guard(), FakeTensorMode(allow_non_fake_inputs=True):
        yield


class OnDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails an operation that reads or writes host memory: a captured graph would not do it again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_iter((args, kwargs, result)):
            if isinstance(each, torch.Tensor) and each.device.type != "cuda":
                raise AssertionError(f"{func} has to do with a tensor on {each.device}")
        return result


class Uploads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the copies from the host to the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {each.device.type for each in tree_iter((args, result)) if isinstance(each, torch.Tensor)}
        self.count += devices == {"cpu", "cuda"}
        return result


class Traced:
    """Stands for a CUDA graph: traced once; then id 5, finite, for every row that is asked for, fetched as a list."""

    replays = fetches = 0

    def __init__(self, compute: Callable[[], torch.Tensor]) -> None:
        with OnDevice():
            self._rows = len(compute())
        self.result: Any = self

    def replay(self) -> None:
        Traced.replays += 1

    def tolist(self) -> list[list[int]]:
        Traced.fetches += 1
        return [[5, 1]] * self._rows


def make_engine(precision: Precision) -> TorchEngine:
    model = empty_llama(SIZES, NUMERICS[precision].dtype, GPU)
    if (kind := NUMERICS[precision].convert) is not None:
        fp8.convert(model, kind)
    llama = Llama(model, 1024)
    return TorchEngine(llama, vocab_size=32064, capacity=ROBOTS, tokens=1024, eos=frozenset(), allowed=None)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8", "int4"])
@pytest.mark.usefixtures("fake_gpu")
def test_passes_of_all_usual_shapes_stay_on_the_gpu_and_wait_for_nothing(precision: Precision) -> None:
    engine = make_engine(precision)
    assert engine.capture([PATCHES + 39, PATCHES + 71], DIMS, Traced) == 20
    mixed = [Shape(2, 300, 1), Shape(1, 290, 8), Shape(3, 5, 5, 311)]
    with OnDevice(), torch.inference_mode():
        picked = engine._runner._compute(mixed)
    assert (picked.shape, picked.device.type) == ((2 + 8 + 15, 2), "cuda")


@pytest.mark.usefixtures("fake_gpu")
def test_a_pass_costs_one_copy_to_the_gpu_besides_the_patches_and_one_wait() -> None:
    engine = make_engine("bf16")
    engine.capture([PATCHES + 39], DIMS, Traced)
    replays, fetches = Traced.replays, Traced.fetches
    patches = np.zeros((PATCHES, SIZES.llm_dim), np.float32)
    engine.admit(Frame(1, 1, (1,) * 24, patches, DIMS, math.inf))
    uploads, outcomes = list[int](), list[Outcome]()
    while not outcomes:
        with Uploads() as seen:
            outcomes = engine.step()
        uploads.append(seen.count)
    assert uploads == [2] + [1] * 6
    assert (Traced.replays - replays, Traced.fetches - fetches) == (DIMS, DIMS)
    assert isinstance(outcomes[0].result, Tokens)
    assert outcomes[0].result.ids == (5,) * DIMS


def on_the_host(rows: torch.Tensor) -> torch.Tensor:
    return rows + torch.zeros(4)


def from_the_host(rows: torch.Tensor) -> torch.Tensor:
    return rows + torch.tensor([1.0, 2.0, 3.0, 4.0], device=GPU)


def waits_for_a_number(rows: torch.Tensor) -> torch.Tensor:
    return rows * rows.sum().item()


def depends_on_values(rows: torch.Tensor) -> torch.Tensor:
    return rows[rows[:, 0] > 0]


def not_aligned(rows: torch.Tensor) -> torch.Tensor:
    codes, ones = rows.to(torch.float8_e4m3fn), torch.ones(len(rows), 1, device=GPU)
    return torch._scaled_mm(codes, codes.T, scale_a=ones, scale_b=ones.T, out_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("slip", "error"),
    [
        (on_the_host, AssertionError),
        (from_the_host, AssertionError),
        (waits_for_a_number, DataDependentOutputException),
        (depends_on_values, DynamicOutputShapeException),
        (not_aligned, RuntimeError),
    ],
)
@pytest.mark.usefixtures("fake_gpu")
def test_the_trace_finds_slips(slip: Callable[[torch.Tensor], torch.Tensor], error: type[Exception]) -> None:
    """Of each kind that this file is there to find."""
    with OnDevice(), pytest.raises(error):
        slip(torch.zeros(8, 4, device=GPU))
