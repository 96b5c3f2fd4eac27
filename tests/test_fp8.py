"""fp8: the kernel computes what its arithmetic says, and only hardware that has it is served with it."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from splitvla_cloud.backbone import Backbone
from splitvla_cloud.engine import fp8
from splitvla_cloud.engine.fp8 import Fp8Linear, emulate, quantise, quantise_at_once
from splitvla_cloud.engine.linear import FusedFp8, project
from splitvla_cloud.precision import check_shapes
from splitvla_shared.bundle import open_bundle
from splitvla_shared.errors import ConfigError


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48, dtype=torch.bfloat16)


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(20, 64, generator=torch.Generator().manual_seed(1)).bfloat16()


def test_a_quantised_value_is_off_by_at_most_a_sixteenth(rows: torch.Tensor) -> None:
    """float8_e4m3fn has three bits behind the first: half a step is at most a sixteenth of the value."""
    codes, scales = quantise(rows)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.float8_e4m3fn, (20, 64), (20, 1))
    error = (codes.float() * scales - rows.float()).abs()
    assert (error <= torch.maximum(rows.float().abs() / 16, scales * 2.0**-10) * 1.001).all()
    assert (codes.float().abs().amax(dim=-1) == torch.finfo(torch.float8_e4m3fn).max).all()


def test_rows_of_zeros_stay_zeros_and_rows_that_are_not_finite_stay_so() -> None:
    rows = torch.zeros(3, 16)
    rows[1, 2], rows[2, 3] = torch.nan, torch.inf
    layer = Fp8Linear(nn.Linear(16, 16, bias=False))
    result = layer(rows)
    assert (result[0] == 0).all()
    assert not torch.isfinite(result[1:]).all(dim=-1).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_layer_computes_what_the_emulation_says(layer: nn.Linear, rows: torch.Tensor, dtype: torch.dtype) -> None:
    layer, rows = layer.to(dtype), rows.to(dtype)
    expected = emulate(*quantise(rows), *quantise(layer.weight)).to(dtype) + layer.bias
    close = {torch.bfloat16: 2.0**-7, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(Fp8Linear(layer)(rows), expected, rtol=close, atol=close)


def test_rows_of_several_sequences_keep_their_shape(layer: nn.Linear, rows: torch.Tensor) -> None:
    """transformers' own modules, which the benchmark compares with, call a layer with (batch, n, in)."""
    small = Fp8Linear(layer)
    assert torch.equal(small(rows.view(2, 10, 64)), small(rows).view(2, 10, 48))


def test_a_row_does_not_depend_on_its_batch(layer: nn.Linear, rows: torch.Tensor) -> None:
    """An outlier in one robot's frame must not cost another robot's precision, as one scale for all rows would."""
    small, wild = Fp8Linear(layer), rows.clone()
    wild[0] *= 1e4
    assert torch.equal(small(wild)[1:], small(rows)[1:])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
def test_compiled_as_on_a_gpu_it_quantises_the_same_for_any_number_of_rows(rows: torch.Tensor) -> None:
    """And what is not finite stays so."""
    rows[3, 5], rows[4, 6] = torch.nan, torch.inf
    with torch.inference_mode():
        for count in (20, 1, 7):
            codes, scales = quantise_at_once(rows[:count])
            expected, expected_scales = quantise(rows[:count])
            torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0, equal_nan=True)
            torch.testing.assert_close(codes.float(), expected.float(), rtol=1 / 8, atol=0, equal_nan=True)


def test_the_compiler_is_told_the_width_and_no_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel each for 4096 and 11008 inputs, and each of its own for one row."""
    seen = list[tuple[int, int]]()

    def record(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        (rows,) = (each for each in inputs if isinstance(each, torch.Tensor) and each.ndim == 2)
        seen.append((sum(isinstance(each, torch.SymInt) for each in inputs), rows.shape[1]))
        return graph.forward

    @functools.cache
    def compiled(function: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        return torch.compile(function, dynamic=dynamic, backend=record)

    monkeypatch.setattr(fp8, "compiled", compiled)
    with torch.inference_mode():
        for width in (32, 48, 32):
            for count in (300, 7, 1, 2):
                quantise_at_once(torch.ones(count, width, dtype=torch.bfloat16))
    assert seen == [(1, 32), (0, 32), (1, 48), (0, 48)], "sizes that are left open, and the width"


def test_fused_layers_give_bit_for_bit_what_they_give_alone(rows: torch.Tensor) -> None:
    """Alone and fused, before and after: transformers' modules go on working on views."""
    torch.manual_seed(2)
    parts = [Fp8Linear(nn.Linear(64, outputs, bias=False, dtype=torch.bfloat16)) for outputs in (48, 16, 32)]
    alone = [part(rows) for part in parts]
    fused = project(*parts)
    assert isinstance(fused, FusedFp8)
    assert torch.equal(fused(rows), torch.cat(alone, dim=-1))
    assert torch.equal(fused.some(rows, 1, 3), torch.cat(alone[1:], dim=-1))
    assert torch.equal(fused.some(rows[:1], 0, 1), alone[0][:1])
    for part, before in zip(parts, alone, strict=True):
        assert torch.equal(part(rows), before)
        assert part.weight.untyped_storage().data_ptr() == parts[0].weight.untyped_storage().data_ptr()


def test_a_cpu_is_told_what_fp8_needs(tiny_bundles: Path) -> None:
    with pytest.raises(ConfigError, match=r"fp8 needs a CUDA GPU of compute capability 8\.9.*use precision int8"):
        Backbone.load(open_bundle(tiny_bundles / "cloud", "cloud"), "fp8", "cpu")


def test_fp8_refuses_layers_that_its_kernel_can_not_take() -> None:
    check_shapes("fp8", "cuda:0", {"q_proj": (64, 32)})
    with pytest.raises(ConfigError, match=r"fp8 takes layers of 16n -> 16m features, q_proj is 60 -> 32"):
        check_shapes("fp8", "cuda:0", {"q_proj": (60, 32)})
