"""Products in bfloat16 on a processor that can't multiply bfloat16: widened to float32 as they are used.

A product in bfloat16 means exact products of two 8-bit mantissas, summed in float32 and rounded once. On float32 units
that is what widened operands give; only the order of the sum is the library's own, as it is on every device. Without
AVX512 or better, torch 2.13 gets there element by element: 7 to 10 GFLOP/s where float32 has 80.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional

# Outputs whose weights are widened at a time: 8 MB at 4096 inputs. What a cache does not hold moves three times.
_OUTPUTS = 512


def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`functional.linear`: (n, in) by (out, in) to (n, out), by the fastest way that this device has for the dtype."""
    # One row is bound by reading the weights, which bfloat16 halves.
    if rows.dtype is torch.bfloat16 and not rows.is_cuda and len(rows) > 1 and not _multiplies_bfloat16():
        return widened(rows, weight, bias)
    return functional.linear(rows, weight, bias)


def widened(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product in float32, rounded to the rows' dtype once, with the bias in it."""
    wide = rows.float()
    result = rows.new_empty(len(rows), len(weight))
    for begin in range(0, len(weight), _OUTPUTS):
        part = slice(begin, begin + _OUTPUTS)
        result[:, part] = functional.linear(wide, weight[part].float(), None if bias is None else bias[part].float())
    return result


@cache
def _multiplies_bfloat16() -> bool:
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # not in a build without oneDNN
    return asked is not None and bool(asked())
