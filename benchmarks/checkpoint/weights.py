"""The tensors of a checkpoint: their names and shapes, and how their numbers are drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.checkpoint.sizes import ACTION_BINS, PATCH, Layout, Sizes

LOUDNESS = 16.0
_DRAWN_AT_ONCE = 1 << 23  # numbers in float32


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor, normally distributed. Its `loud_rows` are multiplied by 16."""

    name: str
    shape: tuple[int, ...]
    std: float = 1.0
    mean: float = 0.0
    loud_rows: range = range(0)

    def draw(self, generator: torch.Generator, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The numbers in order, some rows at a time, so that no tensor is ever whole in float32."""
        rows, row = self.shape[0], math.prod(self.shape[1:])
        step = max(1, _DRAWN_AT_ONCE // row)
        for start in range(0, rows, step):
            shape = (min(step, rows - start), *self.shape[1:])
            part = self.mean + self.std * torch.randn(shape, generator=generator)
            loud = slice(max(self.loud_rows.start - start, 0), max(self.loud_rows.stop - start, 0))
            part[loud] *= LOUDNESS
            yield part.to(dtype)


def plan(sizes: Sizes, layout: Layout) -> Iterator[Planned]:
    """Every tensor of a checkpoint, in the order of the reference's modules."""
    fused = layout == "fused"
    if fused:
        yield from _tower("vision_backbone.featurizer.", sizes.dino_dim, sizes.dino_blocks, sizes.patches, 4)
    name = "fused_featurizer" if fused else "featurizer"
    yield from _tower(f"vision_backbone.{name}.", sizes.siglip_dim, sizes.siglip_blocks, sizes.patches, 0)
    dim = sizes.siglip_dim + sizes.dino_dim * fused
    widths = [dim, 4 * dim, sizes.llm_dim, sizes.llm_dim] if fused else [dim, sizes.llm_dim, sizes.llm_dim]
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
        yield from _linear(f"projector.fc{index}", fan_in, fan_out, gain=1.7)
    yield from _llama(sizes)


def _linear(name: str, fan_in: int, fan_out: int, gain: float = 1.0) -> Iterator[Planned]:
    yield Planned(f"{name}.weight", (fan_out, fan_in), std=gain / math.sqrt(fan_in))
    yield Planned(f"{name}.bias", (fan_out,), std=0.1)


def _norm(name: str, dim: int) -> Iterator[Planned]:
    yield Planned(f"{name}.weight", (dim,), std=0.1, mean=1.0)
    yield Planned(f"{name}.bias", (dim,), std=0.1)


def _tower(prefix: str, dim: int, blocks: int, patches: int, registers: int) -> Iterator[Planned]:
    """DINO-like with registers, SigLIP-like (attention pool, no prefix tokens) without."""
    if registers:
        yield Planned(f"{prefix}cls_token", (1, 1, dim))
        yield Planned(f"{prefix}reg_token", (1, registers, dim))
    yield Planned(f"{prefix}pos_embed", (1, patches, dim), std=0.5)
    yield Planned(f"{prefix}patch_embed.proj.weight", (dim, 3, PATCH, PATCH), std=2.0 / math.sqrt(3 * PATCH**2))
    yield Planned(f"{prefix}patch_embed.proj.bias", (dim,), std=0.1)
    for index in range(blocks):
        block = f"{prefix}blocks.{index}."
        yield from _norm(f"{block}norm1", dim)
        yield from _linear(f"{block}attn.qkv", dim, 3 * dim, gain=1.5)
        yield from _linear(f"{block}attn.proj", dim, dim)
        if registers:
            yield Planned(f"{block}ls1.scale_factor", (dim,), std=0.2, mean=0.7)
        yield from _norm(f"{block}norm2", dim)
        yield from _linear(f"{block}mlp.fc1", dim, _mlp(dim, registers))
        yield from _linear(f"{block}mlp.fc2", _mlp(dim, registers), dim)
        if registers:
            yield Planned(f"{block}ls2.scale_factor", (dim,), std=0.2, mean=0.7)
    yield from _norm(f"{prefix}norm", dim)
    if not registers:
        pool = f"{prefix}attn_pool."
        yield Planned(f"{pool}latent", (1, 1, dim))
        for name, fan_in, fan_out in (("q", dim, dim), ("kv", dim, 2 * dim), ("proj", dim, dim)):
            yield from _linear(pool + name, fan_in, fan_out)
        yield from _norm(f"{pool}norm", dim)
        yield from _linear(f"{pool}mlp.fc1", dim, _mlp(dim, registers))
        yield from _linear(f"{pool}mlp.fc2", _mlp(dim, registers), dim)


def _mlp(dim: int, registers: int) -> int:
    return 4 * dim if registers else int(3.7362 * dim)


def _llama(sizes: Sizes) -> Iterator[Planned]:
    """Sharp attention, so that patches and words both reach the answer; loud action rows, so that actions win."""
    root, dim, mlp, heads = "language_model.", sizes.llm_dim, sizes.llm_mlp, sizes.llm_attention_dim
    yield Planned(f"{root}model.embed_tokens.weight", (sizes.vocab_rows, dim))
    for index in range(sizes.llm_layers):
        layer = f"{root}model.layers.{index}."
        for name, rows, columns, gain in (
            ("q", heads, dim, 2.5),
            ("k", heads, dim, 2.5),
            ("v", heads, dim, 1.0),
            ("o", dim, heads, 2.0),
        ):
            yield Planned(f"{layer}self_attn.{name}_proj.weight", (rows, columns), std=gain / math.sqrt(columns))
        for name, rows, columns in (("gate", mlp, dim), ("up", mlp, dim), ("down", dim, mlp)):
            yield Planned(f"{layer}mlp.{name}_proj.weight", (rows, columns), std=1.5 / math.sqrt(columns))
        yield Planned(f"{layer}input_layernorm.weight", (dim,), std=0.1, mean=1.0)
        yield Planned(f"{layer}post_attention_layernorm.weight", (dim,), std=0.1, mean=1.0)
    yield Planned(f"{root}model.norm.weight", (dim,), std=0.1, mean=1.0)
    loud = range(sizes.action_vocab_size - ACTION_BINS, sizes.action_vocab_size)
    yield Planned(f"{root}lm_head.weight", (sizes.vocab_rows, dim), std=0.25 / math.sqrt(dim), loud_rows=loud)
