"""A low-rank update of one stored tensor, W + scale * B A, computed when the tensor is read.

Source: LoRA (arXiv:2106.09685) and peft's `get_delta_weight`; a convolution's A and B are those of a linear layer with
the kernel's axes behind them, [r, in, kh, kw] and [out, r, 1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from splitvla_cloud.split.tensor_file import TensorEntry
from splitvla_shared.errors import CheckpointError

# Rows of W that are in float32 at a time: the largest tensor of a 7B model would take 1 GB more as a whole.
_ROW_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class MergedTensor:
    """`base` with an adapter's update. Reads as a StoredTensor of the base's name, type and shape.

    down is A, up is B; their shapes fit the base's, which the adapter's reader has checked.
    """

    base: TensorEntry
    down: TensorEntry
    up: TensorEntry
    scale: float

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def dtype(self) -> str:
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def size(self) -> int:
        return self.base.size

    @property
    def file(self) -> Path:
        """The adapter's file: where a merged tensor is at fault, the base alone was read before without one."""
        return self.down.file

    def read(self) -> torch.Tensor:
        """The sum in float32, rounded once to the base's type. Raises CheckpointError for an A or B with NaN."""
        down, up = (_finite(entry).flatten(1) for entry in (self.down, self.up))
        weight = self.base.read()
        rows = weight.flatten(1)
        step = max(1, _ROW_BYTES // (4 * rows.shape[1]))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            part.copy_(part.float() + (up[start : start + step] @ down) * self.scale)
        return weight


def _finite(entry: TensorEntry) -> torch.Tensor:
    tensor = entry.read()
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{entry.file}: {entry.name} holds NaN or infinity; take an earlier step of the training")
    return tensor.float()
