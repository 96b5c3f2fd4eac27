"""A plain Llama, as it is trained; the exported weights run in transformers' own.

Parameter names are those of the checkpoint. The last layer only computes the answers, which changes none of them.
Source: transformers' modeling_llama.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from benchmarks.checkpoint.sizes import Sizes

_RMS_EPS, _ROPE_THETA = 1e-6, 10000.0


class RmsNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + _RMS_EPS) * self.weight


def _rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding as transformers lays it out: the two halves of a head are the two coordinates."""
    half = x.shape[-1] // 2
    speeds = _ROPE_THETA ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions[:, None, :, None].float() * speeds
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.add_module(name, nn.Linear(dim, dim, bias=False))

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, answers: int) -> Tensor:
        """(B, T, dim) to (B, answers, dim), those of the last `answers` positions."""

        def heads(name: str, of: Tensor) -> Tensor:
            projected: Tensor = self.get_submodule(name)(of)
            return projected.reshape(*projected.shape[:2], self.heads, -1).transpose(1, 2)

        queries = _rotate(heads("q_proj", x[:, -answers:]), positions[:, -answers:])
        keys = _rotate(heads("k_proj", x), positions)
        mixed = F.scaled_dot_product_attention(queries, keys, heads("v_proj", x), attn_mask=mask[:, :, -answers:])
        out: Tensor = self.get_submodule("o_proj")(mixed.transpose(1, 2).flatten(2))
        return out

    def weights(self, x: Tensor, positions: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        """What the first head attends to, (B, n, T), from the places (B, n) of the sequence x (B, T, dim)."""
        dim = x.shape[2] // self.heads
        asking = x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))
        queries, keys = (
            _rotate(F.linear(of, self.get_parameter(f"{name}.weight")[:dim])[:, None], where)[:, 0]
            for name, of, where in (("q_proj", asking, positions.gather(1, places)), ("k_proj", x, positions))
        )
        scores = queries @ keys.transpose(1, 2) / math.sqrt(dim)
        seen = mask.gather(1, places[:, :, None].expand(-1, -1, mask.shape[2]))
        return scores.masked_fill(~seen, -math.inf).softmax(-1)


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(sizes.llm_dim)
        self.self_attn = SelfAttention(sizes.llm_dim, sizes.llm_heads)
        self.post_attention_layernorm = RmsNorm(sizes.llm_dim)
        self.mlp = FeedForward(sizes.llm_dim, sizes.llm_mlp)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, answers: int) -> Tensor:
        x = x[:, -answers:] + self.self_attn(self.input_layernorm(x), positions, mask, answers)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llama(nn.Module):
    """Embeddings in, logits of the last positions out."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(sizes.vocab_rows, sizes.llm_dim)
        self.model.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.llm_layers))
        self.model.norm = RmsNorm(sizes.llm_dim)
        self.lm_head = nn.Linear(sizes.llm_dim, sizes.vocab_rows, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.model.get_submodule("embed_tokens")(ids)
        return out

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, answers: int) -> tuple[list[Tensor], Tensor]:
        """x: (B, T, dim). mask: bool (B, T, T), who attends to whom.

        Returns what goes into each layer (B, T, dim), and what `lm_head` reads at the end (B, answers, dim).
        """
        inputs = [x]
        *layers, last = self.model.get_submodule("layers").children()
        for layer in layers:
            inputs.append(layer(inputs[-1], positions, mask[:, None], x.shape[1]))
        return inputs, self.model.get_submodule("norm")(last(inputs[-1], positions, mask[:, None], answers))

    def attends(self, number: int, x: Tensor, positions: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        """What the first head of a layer attends to from the places (B, n): (B, n, T). x: what goes into the layer."""
        layer = list(self.model.get_submodule("layers").children())[number]
        assert isinstance(layer, Layer)
        return layer.self_attn.weights(layer.input_layernorm(x), positions, mask, places)


def attention_mask(real: Tensor, prompts: int, wide: int) -> Tensor:
    """real: bool (B, T). Bool (B, T, T): everyone attends to what is before, but no prompt to another one."""
    length = real.shape[1]
    places = torch.arange(length, device=real.device)
    prompt = (places - (length - prompts * wide)).div(wide, rounding_mode="floor")  # below 0: the picture's
    told = (prompt[None, :] < 0) | (prompt[None, :] == prompt[:, None])
    seen = told & (places[None, :] <= places[:, None])
    return (seen & real[:, None, :]) | torch.eye(length, dtype=torch.bool, device=real.device)
