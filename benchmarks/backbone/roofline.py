"""What a device can do, measured in the same run; and from that, the least time that an answer could take on it.

Rules of this file: a bound must not be beaten. Only weights count as bytes and only matrix products with weights as
operations; attention, norms, keys and values come on top in practice and are left out. A rate is the best of several
tries, because a try can only be disturbed downwards, and of the fastest way to multiply that we know on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.checkpoint.sizes import Sizes
from splitvla_cloud.engine.widened import product

_TRIES = 7
_IN_A_ROW = 20  # on a GPU, where a launch and waiting for it take some percent of a copy's time


@dataclass(frozen=True, slots=True)
class Roofline:
    """copy_bytes_s: bytes read and written a second while copying. flops_s: of matrix products in one dtype."""

    copy_bytes_s: float
    flops_s: float

    def best(self, other: Roofline) -> Roofline:
        return Roofline(max(self.copy_bytes_s, other.copy_bytes_s), max(self.flops_s, other.flops_s))


@dataclass(frozen=True, slots=True)
class Work:
    """Of one forward pass. weight_bytes: read once. flops: two for each weight and row."""

    weight_bytes: float
    flops: float

    def least_s(self, roofline: Roofline) -> float:
        return max(self.weight_bytes / roofline.copy_bytes_s, self.flops / roofline.flops_s)


def pass_work(sizes: Sizes, rows: int, asked: int, layer_bytes: float, head_bytes: float) -> Work:
    """A pass over `rows` of which `asked` are predicted behind: the last layer's keys and values for all, the rest of
    it and the head for these alone. layer_bytes, head_bytes: a weight of a layer and of the head takes."""
    layer = 4 * sizes.llm_dim**2 + 3 * sizes.llm_dim * sizes.llm_mlp
    keys_values = 2 * sizes.llm_dim**2
    head = sizes.llm_dim * sizes.vocab_rows
    products = (sizes.llm_layers - 1) * layer * rows + keys_values * rows + (layer - keys_values + head) * asked
    return Work(sizes.llm_layers * layer * layer_bytes + head * head_bytes, 2.0 * products)


def measure(device: str, dtype: torch.dtype, size: int | None = None) -> Roofline:
    """size: side of the square matrices; the copied block is as large as four of them. None: the device's usual one."""
    size = size or (8192 if device.startswith("cuda") else 2048)
    a = torch.randn(size, size, device=device).to(dtype)
    b = a.clone()
    block = torch.ones(4 * size * size, device=device)
    into = torch.empty_like(block)
    product_s = min(_seconds(device, lambda: product(a, b, None)) for _ in range(_TRIES))
    copy_s = min(_seconds(device, lambda: into.copy_(block)) for _ in range(_TRIES))
    return Roofline(2 * block.nbytes / copy_s, 2 * size**3 / product_s)


def _seconds(device: str, work: Callable[[], object]) -> float:
    times = _IN_A_ROW if device.startswith("cuda") else 1
    synchronise(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return (time.perf_counter() - began) / times


def synchronise(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
