"""Projections of a Llama layer: several matrices as one where that is exact, as they are where they are quantised.

Rules of this file: fusing shares memory. The modules that transformers loaded keep working on views of the fused
matrix, so nothing is held twice and the library's own forward pass stays there to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from splitvla_cloud.engine.fp8 import CODE, Fp8Linear, scaled_product
from splitvla_cloud.engine.widened import product


class Projection(Protocol):
    """Several projections of the same rows, beside one another."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, in) to (n, sum of outs)."""

    def some(self, rows: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Of the parts first..last-1 alone: (n, in) to (n, sum of their outs)."""


class Fused:
    """One matrix product for several plain linear layers. Row i of the result depends on row i of the input alone."""

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        weights = [part.weight.detach() for part in parts]
        self._weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        biased = [part for part in parts if part.bias is not None]
        self._bias = torch.cat([part.bias.detach() for part in biased]) if biased else None
        self._ends = [0]
        for part in parts:
            self._ends.append(self._ends[-1] + part.out_features)
            part.weight = nn.Parameter(self._weight[self._ends[-2] : self._ends[-1]], requires_grad=False)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return product(rows, self._weight, self._bias)

    def some(self, rows: torch.Tensor, first: int, last: int) -> torch.Tensor:
        part = slice(self._ends[first], self._ends[last])
        return product(rows, self._weight[part], None if self._bias is None else self._bias[part])


class FusedFp8:
    """One product for several fp8 layers, whose rows are quantised once. An output has a scale of its own, so that each
    part is bit for bit what it is alone."""

    def __init__(self, parts: Sequence[Fp8Linear]) -> None:
        bytes_ = torch.cat([part.weight.detach().view(torch.uint8) for part in parts])
        self._weight, self._scales = bytes_.view(CODE), torch.cat([part.scales for part in parts], dim=1)
        self._dtype = parts[0].dtype
        self._ends = [0]
        for part in parts:
            self._ends.append(self._ends[-1] + part.weight.shape[0])
            own = slice(*self._ends[-2:])
            part.weight = nn.Parameter(self._weight[own], requires_grad=False)
            part.scales = self._scales[:, own]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return self.some(rows, 0, len(self._ends) - 1)

    def some(self, rows: torch.Tensor, first: int, last: int) -> torch.Tensor:
        part = slice(self._ends[first], self._ends[last])
        return scaled_product(rows, self._weight[part], self._scales[:, part], None, self._dtype)


class Beside:
    """Layers that can't be fused, such as those of bitsandbytes: called one by one, put side by side."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = tuple(parts)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return self.some(rows, 0, len(self._parts))

    def some(self, rows: torch.Tensor, first: int, last: int) -> torch.Tensor:
        results = [part(rows) for part in self._parts[first:last]]
        return results[0] if len(results) == 1 else torch.cat(results, dim=-1)


def project(*parts: Any) -> Projection:
    """The best projection for these layers: fused where all of them are plain, and all or none have a bias, or fp8."""
    if all(type(part) is nn.Linear for part in parts) and len({part.bias is None for part in parts}) == 1:
        return Fused(parts)
    if all(type(part) is Fp8Linear and part.bias is None for part in parts):
        return FusedFp8(parts)
    return Beside(parts)
