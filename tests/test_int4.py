"""int4: what is packed comes back within half a step, and the layer computes what that arithmetic says."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from splitvla_cloud.engine.compiled import compiled
from splitvla_cloud.engine.fp8 import emulate, quantise
from splitvla_cloud.engine.int4 import GROUP, Int4Linear, pack, unpack
from splitvla_cloud.precision import check_shapes
from splitvla_shared.errors import ConfigError


@pytest.fixture
def layer() -> nn.Linear:
    """Groups of very different size within a row, and rows of very different size."""
    torch.manual_seed(0)
    layer = nn.Linear(4 * GROUP, 48, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.view(48, 4, GROUP).mul_(torch.tensor([1.0, 0.1, 8.0, 0.0])[None, :, None])
        layer.weight[3] *= 1e4
    return layer


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(20, 4 * GROUP, generator=torch.Generator().manual_seed(1)).bfloat16()


def test_a_weight_comes_back_within_half_a_step_of_its_group_and_the_rounding_to_8_bits(layer: nn.Linear) -> None:
    codes, group_scales, row_scales = pack(layer.weight.detach())
    assert codes.shape == (48, 4, GROUP // 2)
    assert (codes & 15).min() >= 1
    assert (codes >> 4).min() >= 1
    meant = layer.weight.detach().float().view(48, 4, GROUP)
    found = (unpack(codes, group_scales).float() * row_scales).view(48, 4, GROUP)
    steps = meant.abs().amax(dim=-1, keepdim=True) / 7
    # Half a step, a sixteenth of the value for three bits of mantissa, and what bfloat16 makes of the scale.
    assert ((found - meant).abs() <= steps * (0.5 + 7 * 2.0**-8) + meant.abs() / 16 * 1.1).all()
    assert (found[:, 3] == 0).all()


def test_every_code_is_exact_where_the_scale_is_the_rows_own() -> None:
    """64 times -7 .. 7 are 8-bit floats; the order of inputs within a group is kept."""
    weight = torch.arange(-7, 8).repeat(5)[:GROUP].float()[None] * 0.5
    codes, group_scales, row_scales = pack(weight)
    assert torch.equal(unpack(codes, group_scales).float() * row_scales, weight)


def test_a_layer_takes_half_a_byte_a_weight_and_a_scale_for_each_group(layer: nn.Linear) -> None:
    small = Int4Linear(layer)
    assert small.weight.nbytes + small.group_scales.nbytes == 48 * 4 * (GROUP // 2 + 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_layer_computes_what_the_emulation_says(layer: nn.Linear, rows: torch.Tensor, dtype: torch.dtype) -> None:
    layer, rows = layer.to(dtype), rows.to(dtype)
    codes, group_scales, row_scales = pack(layer.weight.detach())
    expected = emulate(*quantise(rows), unpack(codes, group_scales), row_scales).to(dtype) + layer.bias
    close = {torch.bfloat16: 2.0**-7, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(Int4Linear(layer)(rows), expected, rtol=close, atol=close)


def test_a_row_does_not_depend_on_its_batch(layer: nn.Linear, rows: torch.Tensor) -> None:
    small, wild = Int4Linear(layer), rows.clone()
    wild[0] *= 1e4
    assert torch.equal(small(wild)[1:], small(rows)[1:])
    assert torch.equal(small(rows.view(2, 10, -1)), small(rows).view(2, 10, 48))


def test_a_weight_that_is_not_finite_stays_so(layer: nn.Linear, rows: torch.Tensor) -> None:
    with torch.no_grad():
        layer.weight[5, 7] = torch.nan
    assert not torch.isfinite(Int4Linear(layer)(rows)[:, 5]).any()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
def test_compiled_as_on_a_gpu_it_unpacks_the_same(layer: nn.Linear) -> None:
    packed = pack(layer.weight.detach())[:2]
    with torch.inference_mode():
        found = compiled(unpack, dynamic=False)(*packed)
    assert torch.equal(found.view(torch.uint8), unpack(*packed).view(torch.uint8))


def test_int4_refuses_layers_whose_inputs_are_no_whole_groups() -> None:
    check_shapes("int4", "cuda:0", {"q_proj": (64, 48)})
    with pytest.raises(ConfigError, match=r"int4 takes layers of 64n -> 16m features, down_proj is 96 -> 64"):
        check_shapes("int4", "cuda:0", {"down_proj": (96, 64)})
