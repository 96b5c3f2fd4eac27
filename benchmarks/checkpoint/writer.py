"""Write a checkpoint of any size, a few million numbers at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.checkpoint.configuration import random_statistics, write_configuration, write_json
from benchmarks.checkpoint.sizes import Layout, Sizes
from benchmarks.checkpoint.tokenizer import write_tokenizer
from benchmarks.checkpoint.weights import Planned, plan
from splitvla_cloud.split.progress import Progress, counter, silent

_DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
Shard = list[Planned]


def write_checkpoint(
    path: Path,
    *,
    seed: int = 0,
    sizes: Sizes | None = None,
    layout: Layout = "fused",
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int | None = None,
    progress: Progress = silent,
) -> None:
    """Write config, statistics, tokenizer and safetensors into `path`, which is made where it is missing.

    layout "fused" is openvla-7b's two towers; "siglip-v01" is openvla-v01-7b's one tower, letterbox and Vicuna prompt.
    max_shard_bytes splits the weights over several files with an index; None writes one model.safetensors.
    The same arguments give the same bytes.
    """
    shards = lay_out(path, seed=seed, sizes=sizes, layout=layout, dtype=dtype, max_shard_bytes=max_shard_bytes)
    total = sum(_size(tensor, dtype) for _, tensors in shards for tensor in tensors)
    advance = counter(progress, "weights", total)
    generator = torch.Generator().manual_seed(seed)
    for file, tensors in shards:
        with file.open("r+b") as stream:
            stream.seek(file.stat().st_size - sum(_size(tensor, dtype) for tensor in tensors))
            for tensor in tensors:
                for part in tensor.draw(generator, dtype):
                    stream.write(part.reshape(-1).view(torch.uint8).numpy().data)
                    advance(part.nbytes)


def lay_out(
    path: Path,
    *,
    seed: int = 0,
    sizes: Sizes | None = None,
    layout: Layout = "fused",
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int | None = None,
) -> list[tuple[Path, Shard]]:
    """The same files with zeros for weights, which take no room on most disks. Returns what belongs into each file."""
    sizes = sizes or Sizes()
    path.mkdir(parents=True, exist_ok=True)
    write_configuration(path, sizes, layout, random_statistics(seed))
    write_tokenizer(path, sizes)
    shards = _shards(list(plan(sizes, layout)), dtype, max_shard_bytes or 1 << 62)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(_size(tensor, dtype) for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(path / "model.safetensors.index.json", index)
    files = [path / name for name in names]
    for file, shard in zip(files, shards, strict=True):
        _write_header(file, shard, dtype)
    return list(zip(files, shards, strict=True))


def _shards(tensors: Sequence[Planned], dtype: torch.dtype, limit: int) -> list[Shard]:
    """As `save_pretrained(max_shard_size=limit)` cuts: in order, a new file where the next tensor does not fit."""
    shards: list[Shard] = [[]]
    used = 0
    for tensor in tensors:
        size = _size(tensor, dtype)
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += size
    return shards


def _size(tensor: Planned, dtype: torch.dtype) -> int:
    return math.prod(tensor.shape) * dtype.itemsize


def _header(shard: Shard, dtype: torch.dtype) -> Iterator[tuple[str, object]]:
    yield "__metadata__", {"format": "pt"}
    start = 0
    for tensor in shard:
        end = start + _size(tensor, dtype)
        yield (
            tensor.name,
            {"dtype": _DTYPE_NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]},
        )
        start = end


def _write_header(file: Path, shard: Shard, dtype: torch.dtype) -> None:
    """The header of a safetensors file, and a file as long as its weights will make it."""
    text = json.dumps(dict(_header(shard, dtype)), separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + sum(_size(tensor, dtype) for tensor in shard))
