"""Llama's forward pass over rectangles of rows, on the weights that transformers loaded.

Rules of this file: the arithmetic and its order are those of transformers' LlamaModel, so that fp32 gives the same
tokens; rows of the same sequence see one another by position alone; the last layer computes what is asked for and the
keys and values that later rows will need, nothing else; shapes come from Python, everything else lies on the device, so
that a pass can be captured as a CUDA graph. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from splitvla_cloud.engine.kv_cache import KVCache
from splitvla_cloud.engine.linear import project
from splitvla_cloud.engine.widened import product
from splitvla_shared.errors import BundleError

# Position tables that are the same for every length of sequence.
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")
# Numbers of a mask's row, in what torch's memory-efficient attention asks for on CUDA.
_MASK_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """A rectangle of `batch` sequences times `length` rows of a pass; shorter sequences are padded on the right.

    asked: rows a sequence whose prediction is wanted. span: positions of the cache that a row may see, counted from 0;
    0 where the sequences begin with these rows (a prefill), which then need no cache to read. Where it is not 0,
    sequence i reads slot i, wherever it writes.
    """

    batch: int
    length: int
    asked: int
    span: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """A rectangle with its sequences, int64 (batch,) each: slot in the cache, position of the first row, and the row
    (counted in the rectangle) of the first prediction that is asked for."""

    shape: Shape
    slots: torch.Tensor
    starts: torch.Tensor
    firsts: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Placed:
    """What a group's attention needs, derived once a pass. mask: None where causality is all, else (batch, 1, q, k).

    asked: which of the group's flat rows are asked for. asked_mask: the same mask for these rows alone.
    """

    shape: Shape
    places: torch.Tensor
    mask: torch.Tensor | None
    asked: torch.Tensor
    asked_mask: torch.Tensor


class _Norm:
    """RMS norm. transformers' own arithmetic on a CPU; on CUDA, where it is eight kernels, the fused one, which rounds
    once less in bf16."""

    def __init__(self, module: Any) -> None:
        self._module, self._weight, self._epsilon = module, module.weight, module.variance_epsilon

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.is_cuda:
            return functional.rms_norm(rows, self._weight.shape, self._weight, self._epsilon)
        result: torch.Tensor = self._module(rows)
        return result


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before, self.between = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.qkv = project(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = project(attention.o_proj)
        self.gate_up, self.down = project(mlp.gate_proj, mlp.up_proj), project(mlp.down_proj)

    def mlp(self, rows: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(rows).chunk(2, dim=-1)
        return self.down(functional.silu(gate).mul_(up))


class Llama:
    """The computation of a LlamaForCausalLM. Holds weights and position tables; keys and values are the caller's.

    tokens: the longest sequence. Raises BundleError for a variant of Llama that is computed differently.
    """

    def __init__(self, model: Any, tokens: int) -> None:
        config = model.config
        if config.hidden_act != "silu":
            raise BundleError(f"the backbone's activation is {config.hidden_act!r}, this engine computes silu")
        if (rope := config.rope_parameters["rope_type"]) not in _FIXED_ROPE:
            raise BundleError(f"the backbone's rope type is {rope!r}, this engine knows {', '.join(_FIXED_ROPE)}")
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.hidden = config.head_dim, config.hidden_size
        self.device, self.dtype = str(model.device), model.dtype
        self.embed_tokens = model.model.embed_tokens
        self.layers = [_Layer(layer) for layer in model.model.layers]
        self._scale = model.model.layers[0].self_attn.scaling
        self._norm, self._head = _Norm(model.model.norm), model.lm_head
        with torch.inference_mode():
            positions = torch.arange(tokens + 1, device=self.device)[None]
            cos, sin = model.model.rotary_emb(torch.empty(0, dtype=self.dtype, device=self.device), positions)
        half = self.head_dim // 2
        self._cos = cos[0, :, None]
        # transformers negates half of a rotated row; half of the table is negated here instead, which is the same.
        self._sin = torch.cat((-sin[0, :, None, :half], sin[0, :, None, half:]), dim=-1)

    def new_cache(self, slots: int, tokens: int) -> KVCache:
        return KVCache(len(self.layers), slots, tokens, self.kv_heads, self.head_dim, self.dtype, self.device)

    def forward(self, rows: torch.Tensor, groups: Sequence[Group], cache: KVCache) -> torch.Tensor:
        """Normalised hidden states (sum of batch * asked, hidden) of the rows that are asked for.

        rows: (sum of batch * length, hidden) embeddings, group by group; left changed.
        """
        placed = [self._place(group, cache) for group in groups]
        positions = torch.cat([(group.starts[:, None] + _steps(group)).flatten() for group in groups])
        positions = positions.clamp_max(cache.tokens)
        cos, sin = self._cos[positions], self._sin[positions]
        places = torch.cat([part.places for part in placed])
        for index, layer in enumerate(self.layers[:-1]):
            qk, values = self._project(layer, rows, cos, sin)
            queries, keys = torch.split(qk, [self.heads, self.kv_heads], dim=1)
            cache.write(index, places, keys, values)
            rows += layer.out(self._attend(index, queries, keys, values, placed, cache))
            rows += layer.mlp(layer.between(rows))
        return self._last_layer(rows, placed, cos, sin, places, cache)

    def pick(self, hidden: torch.Tensor, allowed: range | None) -> torch.Tensor:
        """int64 (n, 2): the lowest of the allowed ids with the largest logit, and 1 where all logits are finite.

        torch.argmax documents that order. allowed None: the whole vocabulary.
        """
        logits = self.logits(hidden, allowed)
        best = logits.argmax(dim=-1) + (allowed.start if allowed is not None else 0)
        return torch.stack((best, torch.isfinite(logits).all(dim=-1).long()), dim=-1)

    def logits(self, hidden: torch.Tensor, allowed: range | None = None) -> torch.Tensor:
        """float32 (n, vocabulary), or of the allowed ids alone."""
        ids = slice(None) if allowed is None else slice(allowed.start, allowed.stop)
        bias = self._head.bias
        return product(hidden, self._head.weight[ids], None if bias is None else bias[ids]).float()

    def _last_layer(
        self,
        rows: torch.Tensor,
        placed: Sequence[_Placed],
        cos: torch.Tensor,
        sin: torch.Tensor,
        places: torch.Tensor,
        cache: KVCache,
    ) -> torch.Tensor:
        index, layer = len(self.layers) - 1, self.layers[-1]
        normed = layer.before(rows)
        both = layer.qkv.some(normed, 1, 3).view(-1, 2 * self.kv_heads, self.head_dim)
        keys, values = torch.split(both, [self.kv_heads, self.kv_heads], dim=1)
        keys = self._rotate(keys, cos, sin)
        cache.write(index, places, keys, values)
        asked = _global_rows(placed)
        queries = layer.qkv.some(normed[asked], 0, 1).view(-1, self.heads, self.head_dim)
        queries = self._rotate(queries, cos[asked], sin[asked])
        result = rows[asked]
        result += layer.out(self._attend(index, queries, keys, values, placed, cache, asked_only=True))
        result += layer.mlp(layer.between(result))
        return self._norm(result)

    def _project(
        self, layer: _Layer, rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated queries and keys (n, heads + kv_heads, head_dim), and values (n, kv_heads, head_dim)."""
        rotated = self.heads + self.kv_heads
        qkv = layer.qkv(layer.before(rows)).view(len(rows), rotated + self.kv_heads, self.head_dim)
        return self._rotate(qkv[:, :rotated], cos, sin), qkv[:, rotated:]

    def _rotate(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        half = self.head_dim // 2
        crossed = torch.empty_like(heads)
        torch.mul(heads[..., half:], sin[..., :half], out=crossed[..., :half])
        torch.mul(heads[..., :half], sin[..., half:], out=crossed[..., half:])
        return torch.mul(heads, cos).add_(crossed)

    def _attend(
        self,
        layer: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        placed: Sequence[_Placed],
        cache: KVCache,
        asked_only: bool = False,
    ) -> torch.Tensor:
        """(n, heads * head_dim) for n queries; keys and values are those of all rows of this pass."""
        results = []
        query_at = row_at = 0
        for part in placed:
            shape = part.shape
            width = shape.asked if asked_only else shape.length
            mask = part.asked_mask if asked_only else part.mask
            q = queries[query_at : query_at + shape.batch * width]
            if shape.span:
                k, v = cache.read(layer, shape.batch, shape.span)
            else:
                here = slice(row_at, row_at + shape.batch * shape.length)
                k, v = _by_head(keys[here], shape.batch), _by_head(values[here], shape.batch)
            attended = functional.scaled_dot_product_attention(
                _by_head(q, shape.batch),
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                scale=self._scale,
                enable_gqa=self.heads != self.kv_heads,
            )
            results.append(attended.transpose(1, 2).reshape(shape.batch * width, -1))
            query_at += shape.batch * width
            row_at += shape.batch * shape.length
        return results[0] if len(results) == 1 else torch.cat(results)

    def _place(self, group: Group, cache: KVCache) -> _Placed:
        shape = group.shape
        steps = _steps(group)
        positions = group.starts[:, None] + steps
        asked = (group.firsts[:, None] + steps[: shape.asked]).clamp_max(shape.length - 1)
        keys = shape.span or shape.length
        mask = _visible(positions, keys, self.dtype) if shape.span else None
        asked_mask = _visible(group.starts[:, None] + asked, keys, self.dtype)
        sequences = torch.arange(shape.batch, device=steps.device)[:, None] * shape.length
        return _Placed(
            shape,
            cache.places(group.slots, positions),
            mask,
            (sequences + asked).flatten(),
            asked_mask,
        )


def _by_head(rows: torch.Tensor, batch: int) -> torch.Tensor:
    """(batch * n, heads, head_dim) to (batch, heads, n, head_dim), a view."""
    return rows.reshape(batch, -1, *rows.shape[1:]).transpose(1, 2)


def _steps(group: Group) -> torch.Tensor:
    return torch.arange(group.shape.length, device=group.starts.device)


def _visible(until: torch.Tensor, keys: int, dtype: torch.dtype) -> torch.Tensor:
    """Attention's mask (batch, 1, n, keys) for rows that see the keys up to the positions `until`, (batch, n)."""
    if until.is_cuda:
        return additive_mask(until, keys, dtype)
    return (torch.arange(keys, device=until.device) <= until[:, :, None])[:, None]


def additive_mask(until: torch.Tensor, keys: int, dtype: torch.dtype) -> torch.Tensor:
    """The mask as CUDA's kernel takes it: 0 or -inf to add, rows beginning at aligned places. Of a boolean one, or one
    that is not aligned, torch would make this anew in every layer."""
    width = -(-keys // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
    hidden = torch.arange(width, device=until.device) > until[:, :, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=until.device).masked_fill_(hidden, -torch.inf)
    return mask[:, None, :, :keys]


def _global_rows(placed: Sequence[_Placed]) -> torch.Tensor:
    """The asked rows of all groups, counted over the whole pass."""
    rows, offset = [], 0
    for part in placed:
        rows.append(part.asked + offset)
        offset += part.shape.batch * part.shape.length
    return rows[0] if len(rows) == 1 else torch.cat(rows)
