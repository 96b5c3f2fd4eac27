"""SHA-256 of a model's parts, independent of how its files are cut; the same pass finds weights that are no numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from splitvla_cloud.split.tensor_file import StoredTensor, tensor_bytes
from splitvla_shared.errors import CheckpointError

# Numbers that are looked at together: `isfinite` makes several arrays as long as its input.
_BLOCK = 1 << 22


def canonical_json(value: Any) -> bytes:
    """The same bytes for equal values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()


def json_sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def tensors_sha256(
    entries: Mapping[str, StoredTensor], geometry: Mapping[str, Any], advance: Callable[[int], None]
) -> str:
    """Hex SHA-256 over `geometry` (heads, epsilons, means: what no shape shows), then each tensor in order of name.

    A tensor is hashed as canonical JSON [name, dtype, shape] and its bytes as stored. `advance` gets the bytes done.
    Raises CheckpointError naming the first tensor that holds NaN or infinity.
    """
    digest = hashlib.sha256(canonical_json(geometry))
    for name in sorted(entries):
        entry = entries[name]
        tensor = entry.read()
        if not _finite(tensor):
            raise CheckpointError(f"{entry.file}: {entry.name} holds NaN or infinity; the checkpoint is damaged")
        digest.update(canonical_json([name, entry.dtype, list(entry.shape)]))
        digest.update(tensor_bytes(tensor))
        advance(entry.size)
    return digest.hexdigest()


def _finite(tensor: torch.Tensor) -> bool:
    flat = tensor.reshape(-1)
    return all(bool(torch.isfinite(flat[start : start + _BLOCK]).all()) for start in range(0, len(flat), _BLOCK))
