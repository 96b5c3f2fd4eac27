"""Several small operations as one kernel, by torch.compile: step by step each would read and write all of its tensors.

Compiled at the first call, which is in the warm-up, before graphs are captured. torch needs a C compiler for it, on a
GPU Python's headers too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R], *, dynamic: bool) -> Callable[P, R]:
    """dynamic: once for all shapes, else anew for each, which only a few may have."""
    return _compiled(function, dynamic)  # type: ignore[return-value]


@functools.cache
def _compiled(function: Callable[..., object], dynamic: bool) -> Callable[..., object]:
    return torch.compile(function, dynamic=dynamic)
