"""Linear layers whose weights lie in memory in 4 bits and are multiplied in 8, so that a prefill is fast too.

Rules of this file: a layer's weights are unpacked into 8-bit floats for each of its products, and the product is that
of fp8.py; so its activations and its independence of the batch are the same. A weight is a code from -7 to 7, with one
scale for a group of an output's inputs; times its scale it is rounded to an 8-bit float, which adds little error.
"""

from __future__ import annotations

import torch
from torch import nn

from splitvla_cloud.engine.compiled import compiled
from splitvla_cloud.engine.fp8 import CODE, scaled_product

# Weights of an output that share a scale; a layer's inputs are a multiple of it.
GROUP = 64
_LARGEST = 7
_LARGEST_FP8 = torch.finfo(CODE).max


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of (out, in): codes uint8 (out, in / GROUP, GROUP / 2), a group's second half in the high nibbles, 8 for zero;
    group scales bfloat16 (out, in / GROUP), in units of the row's; row scales float32 (out, 1)."""
    groups = weight.float().view(len(weight), -1, GROUP)
    steps = groups.abs().amax(dim=-1) / _LARGEST
    tiny = torch.finfo(torch.float32).tiny
    # The largest code of a row's widest group becomes the largest 8-bit float: 448 / 7 is 64, which bfloat16 has.
    row_scales = (steps.amax(dim=-1, keepdim=True) * _LARGEST / _LARGEST_FP8).clamp_min(tiny)
    group_scales = (steps / row_scales).bfloat16()
    steps = (group_scales.float() * row_scales).clamp_min(tiny)
    codes = (groups / steps[..., None]).round().clamp(-_LARGEST, _LARGEST).add(8).to(torch.uint8)
    first, second = codes.chunk(2, dim=-1)
    return first | (second << 4), group_scales, row_scales


def unpack(codes: torch.Tensor, group_scales: torch.Tensor) -> torch.Tensor:
    """What `pack` packed as float8_e4m3fn (out, in), still to be multiplied with the row's scale."""
    both = torch.cat((codes & 15, codes >> 4), dim=-1).to(torch.int8) - 8
    return (both * group_scales.float()[..., None]).to(CODE).flatten(1)


class Int4Linear(nn.Module):
    """Stands for a plain nn.Linear, half a byte and a bit a weight. Rows (..., in) to (..., out) in its dtype."""

    group_scales: torch.Tensor
    scales: torch.Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        codes, group_scales, row_scales = pack(layer.weight.detach())
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("group_scales", group_scales)
        self.register_buffer("scales", row_scales.T.contiguous())
        self.bias = layer.bias
        self._dtype = layer.weight.dtype

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        # Step by step it would move some fifteen bytes a weight instead of one and a half.
        unpacked = compiled(unpack, dynamic=False) if rows.is_cuda else unpack
        return scaled_product(rows, unpacked(self.weight, self.group_scales), self.scales, self.bias, self._dtype)
