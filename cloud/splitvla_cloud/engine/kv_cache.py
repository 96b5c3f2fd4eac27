"""Keys and values of all layers and robots, allocated once.

Rules of this file: a key's place in its slot is its position in the sequence, so that "not later than the row" is the
whole attention mask; what a wrong draft or padding left behind is overwritten before a row may see it. A slot has one
more place than a sequence may have, for padding that would fall behind its end. The cache holds finite numbers only: a
masked key still takes part in a product with zero. Writing goes anywhere; reading takes whole slots from the first one
on, as a view, because a copy of all keys and values a layer would cost more than the pass that needs them.
"""

from __future__ import annotations

import torch

_LOUD = 4.0


class KVCache:
    """`slots` sequences of up to `tokens` positions. Owned by the engine that made it."""

    def __init__(
        self, layers: int, slots: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: str
    ) -> None:
        self.slots, self.tokens = slots, tokens
        self._stride = tokens + 1
        shape = (layers, slots * self._stride, heads, head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)

    def places(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Of positions (batch, n) in slots (batch,), flat: (batch * n,)."""
        return (slots[:, None] * self._stride + positions.clamp_max(self.tokens)).flatten()

    def write(self, layer: int, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """keys, values: (n, heads, head_dim), to n places."""
        self._keys[layer].index_copy_(0, places, keys)
        self._values[layer].index_copy_(0, places, values)

    def read(self, layer: int, slots: int, span: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first positions of the first slots, views (slots, heads, span, head_dim)."""
        shape = (self.slots, self._stride, *self._keys.shape[2:])
        keys, values = (kept[layer].view(shape)[:slots, :span] for kept in (self._keys, self._values))
        return keys.transpose(1, 2), values.transpose(1, 2)

    def fill_with_noise(self) -> None:
        """Loud enough that what is read decides what comes of it: for trials, before anybody is served."""
        self._keys.normal_(0.0, _LOUD)
        self._values.normal_(0.0, _LOUD)

    def clear(self, slot: int) -> None:
        """After a fault: numbers that are not finite must not stay."""
        rows = slice(slot * self._stride, (slot + 1) * self._stride)
        self._keys[:, rows] = 0
        self._values[:, rows] = 0
