"""safetensors files, read and written one tensor at a time.

Reading and writing go through plain reads of the byte range of one tensor: memory mapping would count the whole
checkpoint against this process, and the library's writer wants every tensor at once.
Format: 8 bytes length, JSON header, data (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import torch

from splitvla_shared.errors import CheckpointError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_HEADER_LIMIT = 100_000_000  # what the safetensors library accepts
_ALIGN = 8


class StoredTensor(Protocol):
    """A tensor of the model that is read when it is asked for: as it lies in a file, or with an adapter merged in.

    dtype is safetensors' name for it; size is in bytes; file is where a fault in it is to be looked for.
    """

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def file(self) -> Path: ...
    @property
    def size(self) -> int: ...
    def read(self) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: `start` counts bytes from the beginning of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size: int

    def read(self) -> torch.Tensor:
        """The tensor as stored, in memory of its own. Raises CheckpointError when the file ends early."""
        buffer = bytearray(self.size)
        try:
            with self.file.open("rb") as stream:
                stream.seek(self.start)
                count = stream.readinto(buffer)
        except OSError as error:
            raise CheckpointError(f"{self.file}: {error.strerror} while reading {self.name}") from error
        if count != self.size:
            raise CheckpointError(f"{self.file} ends within {self.name}; download it again")
        if not buffer:
            return torch.empty(self.shape, dtype=DTYPES[self.dtype])
        return torch.frombuffer(buffer, dtype=DTYPES[self.dtype]).reshape(self.shape)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    flat: npt.NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return flat.data


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of one file. Raises CheckpointError when the file is truncated or is no safetensors file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            header, data_start = _read_json_header(path, stream, size)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; is the download complete?") from error
    entries = {name: _entry(path, name, value, data_start) for name, value in header.items() if name != "__metadata__"}
    end = data_start
    # One behind the other, as the library itself asks for: two that share bytes would be another model.
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.size)):
        if entry.start != end:
            where = f"{entry.name} begins at byte {entry.start}, expected {end}"
            raise CheckpointError(f"{path}: {where}; download it again")
        end += entry.size
    if end != size:
        raise CheckpointError(f"{path} has {size} bytes, its header describes {end}; download it again")
    return entries


def _read_json_header(path: Path, stream: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > _HEADER_LIMIT or 8 + length > size:
        raise CheckpointError(f"{path} is no safetensors file or is cut off ({size} bytes); download it again")
    try:
        header = json.loads(stream.read(length))
    except ValueError as error:
        raise CheckpointError(f"{path} is no safetensors file: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is no safetensors file: its header is not a JSON object")
    return header, 8 + length


def _entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    try:
        dtype, shape = str(value["dtype"]), tuple(int(length) for length in value["shape"])
        start, end = (int(offset) for offset in value["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header entry of {name} is damaged ({error}); download it again") from error
    # Tensors of other types may be present, and are refused where one is needed.
    expected = math.prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else end - start
    if start < 0 or end < start or min(shape, default=0) < 0 or end - start != expected:
        raise CheckpointError(f"{path}: {name} {list(shape)} {dtype} has {end - start} bytes, expected {expected}")
    return TensorEntry(name, dtype, shape, path, data_start + start, expected)


def write_tensors(path: Path, entries: Mapping[str, StoredTensor]) -> Iterator[int]:
    """Write `entries` under the mapping's names, the header first; yields the bytes of each tensor once written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, entry in entries.items():
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.size],
        }
        offset += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for entry in entries.values():
            stream.write(tensor_bytes(entry.read()))
            yield entry.size


def shard(entries: Mapping[str, StoredTensor], limit_bytes: int) -> Sequence[dict[str, StoredTensor]]:
    """Cut `entries` in order into files of at most `limit_bytes`, at least one tensor each."""
    shards: list[dict[str, StoredTensor]] = [{}]
    used = 0
    for name, entry in entries.items():
        if shards[-1] and used + entry.size > limit_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = entry
        used += entry.size
    return shards
