"""The backbone's weights as bitsandbytes stores them, quantised one tensor at a time.

Each tensor goes through bitsandbytes' own parameter classes and none through a forward pass. That is not for memory
alone: the first forward on a CPU repacks NF4 weights in place, and a model that is saved after it is wrong.
The layout is that of `save_pretrained` on a quantised model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from splitvla_cloud.precision import NUMERICS, Quantised, keep_libraries_offline_and_quiet
from splitvla_cloud.split.tensor_file import StoredTensor
from splitvla_cloud.split.weights import shard_names

# Of tensors that are held until they fill a file; safetensors copies them once more as it writes.
_SHARD_BYTES = 250_000_000
_LAYERS = "model.layers."
_ROW_FORMAT = 0  # of LLM.int8 weights; the only one that bitsandbytes still writes


def write_quantised(
    tensors: Mapping[str, StoredTensor],
    out: Path,
    precision: Quantised,
    advance: Callable[[int], None],
    shard_bytes: int = _SHARD_BYTES,
) -> dict[str, list[str]]:
    """Write safetensors files into `out`; returns their names, and those of the tensors in each.

    Quantised are the linear layers of the transformer's layers; embedding, lm_head, norms and biases become bfloat16.
    `advance` gets the bytes of each tensor of the source once it is quantised.
    """
    keep_libraries_offline_and_quiet()
    files: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    for name, entry in tensors.items():
        stored = _stored(name, entry.read().to(NUMERICS[precision].dtype), precision)
        if shard and _bytes(shard) + _bytes(stored) > shard_bytes:
            files.append(_write_shard(shard, out / _partial(len(files))))
            shard = {}
        shard |= stored
        advance(entry.size)
    files.append(_write_shard(shard, out / _partial(len(files))))
    names = shard_names(len(files))
    for index, name in enumerate(names):
        (out / _partial(index)).rename(out / name)
    return dict(zip(names, files, strict=True))


def _stored(name: str, tensor: torch.Tensor, precision: Quantised) -> dict[str, torch.Tensor]:
    if not name.startswith(_LAYERS) or tensor.dim() != 2:
        return {name: tensor}
    return _QUANTISE[precision](name, tensor)


def _nf4(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    from bitsandbytes.nn import Params4bit

    fields = NUMERICS["nf4"].quantization or {}
    parameter: Any = Params4bit(
        tensor, requires_grad=False, compress_statistics=False, quant_type=fields["bnb_4bit_quant_type"]
    ).to("cpu")
    state = parameter.quant_state.as_dict(packed=True)
    return {name: parameter.data} | {f"{name}.{key}": value for key, value in state.items()}


def _int8(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    from bitsandbytes.nn import Int8Params

    parameter: Any = Int8Params(tensor, requires_grad=False, has_fp16_weights=False).to("cpu")
    module = name.removesuffix("weight")
    return {
        name: parameter.data,
        f"{module}SCB": parameter.SCB,
        f"{module}weight_format": torch.tensor(_ROW_FORMAT, dtype=torch.uint8),
    }


_QUANTISE: dict[Quantised, Callable[[str, torch.Tensor], dict[str, torch.Tensor]]] = {"nf4": _nf4, "int8": _int8}


def _bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _partial(index: int) -> str:
    return f"part-{index}"


def _write_shard(tensors: Mapping[str, torch.Tensor], path: Path) -> list[str]:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return list(tensors)
