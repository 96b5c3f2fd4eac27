"""Linear layers in 8-bit floats, weights and activations both, so that the prefill's matrix products are faster too.

Rules of this file: one scale a row of the input and one an output feature, both float32, so that no row depends on the
others of its batch and an outlier costs its own row alone. The product is torch._scaled_mm; `emulate` says in plain
arithmetic what it computes, and the tests hold the two against each other on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from splitvla_cloud.engine.compiled import compiled

CODE = torch.float8_e4m3fn
_LARGEST = torch.finfo(CODE).max
# The kernel takes matrices whose sides are multiples of this.
FP8_FEATURES = 16
# Tensor cores for 8-bit floats: Ada, Hopper and later.
FP8_CAPABILITY = (8, 9)


def quantise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (n, k) in float8_e4m3fn and scales (n, 1) in float32 of rows (n, k): rows are about codes * scales.

    A row that is not finite stays so, in its codes: the engine finds it in the logits.
    """
    wide = rows.float()
    scales = (wide.abs().amax(dim=-1, keepdim=True) / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide / scales).to(CODE), scales


def quantise_at_once(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantise` as one kernel for any number of rows of a width; one for any width too would not know that rows begin
    at aligned places, read two bytes at a time and write one."""
    torch._dynamo.mark_static(rows, 1)
    return compiled(quantise, dynamic=True)(rows)


def emulate(
    rows: torch.Tensor, row_scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor
) -> torch.Tensor:
    """What the scaled product means, float32 (n, out): codes (n, in) and (out, in), scales (n, 1) and (out, 1)."""
    return (rows.float() @ weight.float().T) * row_scales * weight_scales.T


class Fp8Linear(nn.Module):
    """Stands for a plain nn.Linear without its weight in 16 bits. Rows (..., in) to (..., out) in its dtype."""

    scales: torch.Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        codes, scales = quantise(layer.weight.detach())
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scales", scales.T.contiguous())
        self.bias = layer.bias
        self.dtype = layer.weight.dtype

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return scaled_product(rows, self.weight, self.scales, self.bias, self.dtype)


def scaled_product(
    rows: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Rows (..., in), quantised here, times a weight of codes (out, in) with scales (1, out): (..., out) in dtype."""
    # Step by step it is seven kernels, in front of each product.
    codes, scales = (quantise_at_once if rows.is_cuda else quantise)(rows.view(-1, rows.shape[-1]))
    # The weight's transpose is a view: the kernel asks for its second matrix by columns.
    result = torch._scaled_mm(codes, weight.T, scale_a=scales, scale_b=weight_scales, out_dtype=dtype)
    if bias is not None:
        result += bias
    return result.view(*rows.shape[:-1], -1)


def convert(model: Any, kind: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace the linear layers of a LlamaForCausalLM's transformer blocks in place, one by one, where they lie.

    kind: Fp8Linear or Int4Linear. Embeddings and the head keep their dtype: the head's few rows cost nothing, and it
    decides.
    """
    with torch.no_grad():
        for block in model.model.layers:
            for owner in (block.self_attn, block.mlp):
                for name, layer in list(owner.named_children()):
                    if type(layer) is nn.Linear:
                        setattr(owner, name, kind(layer))
