"""msgpack with numpy arrays in it, as openpi-client's msgpack_numpy writes it, and read as if it came from an enemy.

Source: packages/openpi-client/src/openpi_client/msgpack_numpy.py of Physical-Intelligence/openpi. An array is a map
{b"__ndarray__": true, b"data": bytes, b"dtype": str, b"shape": [...]}, a numpy number {b"__npgeneric__": true, b"data",
b"dtype"}. Only the dtypes of a table come out of it, in arrays of exactly the bytes that their shape needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from splitvla_edge.policy_server.request import shown
from splitvla_shared.errors import CodecError

_DTYPES: dict[str, np.dtype[Any]] = {
    dtype.str: dtype
    for dtype in map(np.dtype, ("?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"))
}
_MAX_DIMS = 8
# A byte of msgpack may be a list of its own, 56 bytes in memory: without these, 48 MB would become gigabytes.
_MAX_CONTAINERS = 512
_MAX_ITEMS = 2048  # of one list or map


def pack(message: Mapping[str, Any]) -> bytes:
    """Raises TypeError on what is neither plain, nor an array or number of the table's dtypes."""
    data: bytes = msgpack.packb(message, default=_plain)
    return data


def unpack(data: bytes) -> dict[Any, Any]:
    """The map that `pack` wrote; its arrays are read-only views of `data`. Raises CodecError on anything else."""
    containers = 0

    def counted(value: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > _MAX_CONTAINERS:
            raise CodecError(f"the message holds over {_MAX_CONTAINERS} lists and maps; send arrays")
        return _revived(value) if isinstance(value, dict) else value

    try:
        message = msgpack.unpackb(
            data,
            object_hook=counted,
            list_hook=counted,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, TypeError) as error:
        reason = str(error) or type(error).__name__
        raise CodecError(f"the message is not msgpack as openpi-client packs it ({reason})") from error
    if not isinstance(message, dict):
        raise CodecError(f"the message is a {type(message).__name__}; expected a map")
    return message


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.str in _DTYPES:
        if isinstance(value, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": value.tobytes(),
                b"dtype": value.dtype.str,
                b"shape": list(value.shape),
            }
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} is not packed: only plain values, and arrays of plain numbers")


def _revived(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return _array(value.get(b"data"), _dtype(value), value.get(b"shape"))
    if b"__npgeneric__" in value:
        return _number(value.get(b"data"), _dtype(value))
    return value


def _dtype(value: dict[Any, Any]) -> np.dtype[Any]:
    name = value.get(b"dtype")
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise CodecError(f"an array has dtype {shown(name)}; accepted are {', '.join(_DTYPES)}")
    return dtype


def _array(data: Any, dtype: np.dtype[Any], shape: Any) -> npt.NDArray[Any]:
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(type(n) is int and n >= 0 for n in shape):
        raise CodecError(f"an array has shape {shown(shape)}; expected at most {_MAX_DIMS} sizes")
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        size = len(data) if isinstance(data, bytes) else "no"
        raise CodecError(f"an array of shape {shape} and dtype {dtype.str!r} came with {size} bytes")
    if dtype.kind == "b" and data.translate(None, b"\0\1"):
        raise CodecError("an array of booleans holds bytes other than 0 and 1")
    try:
        return np.ndarray(tuple(shape), dtype, data)
    except ValueError as error:  # no numbers at all, and sizes that numpy can't multiply
        raise CodecError(f"an array has shape {shape}; that is none ({error})") from error


def _number(data: Any, dtype: np.dtype[Any]) -> Any:
    if not isinstance(data, bool | int | float):
        raise CodecError(f"a number is a {type(data).__name__}")
    try:
        return dtype.type(data)
    except (ValueError, OverflowError) as error:
        raise CodecError(f"{data!r} is no number of dtype {dtype.str!r}") from error
