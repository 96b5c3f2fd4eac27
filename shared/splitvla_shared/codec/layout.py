"""What a payload layout is: how the body's bytes follow from a (rows, dim) tensor, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from splitvla_shared.nouns import FloatArray

Part = npt.NDArray[Any]  # contiguous, little-endian; a body is the bytes of its parts, one after the other


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to lay a float32 (rows, dim) tensor out as a body. All three functions are pure.

    size: exact bytes of the body, from rows and dim alone.
    pack: float32, contiguous, little-endian tensor to parts. Raises CodecError on values that the layout can't carry.
    unpack: a body of exactly `size` bytes to a new float32 tensor. Raises CodecError on bytes that `pack` never writes.
    """

    size: Callable[[int, int], int]
    pack: Callable[[FloatArray], tuple[Part, ...]]
    unpack: Callable[[memoryview, int, int], FloatArray]
