"""The policy as it is trained: the product's own vision module, a plain Llama, and an auxiliary head for training.

Parameter names are those of the checkpoint. Two things make training on a processor possible, and neither changes what
the model computes when it acts: patches may be left out (their positions stay), and the last layer only computes the
answers.
Sources: transformers' modeling_llama.py for the language model; openvla's modeling_prismatic.py for the sequence.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from benchmarks.checkpoint.sizes import ACTION_BINS, PATCH, Sizes
from benchmarks.world.shards import LANDMARKS
from splitvla_cloud.split.geometry import TowerGeometry, VisionGeometry
from splitvla_cloud.split.vit import EdgeModel, Normalizer, VisionTransformer
from splitvla_shared.spec import Resize

ACTION_DIMS = 7
# Wide enough for what a tabletop holds, small enough for an hour on one core. The last block of a tower never runs.
SIZES = Sizes(
    dino_dim=96,
    dino_blocks=4,
    siglip_dim=96,
    siglip_blocks=4,
    tower_heads=3,
    llm_dim=256,
    llm_mlp=384,
    llm_layers=3,
    llm_heads=4,
)
AUXILIARY_NUMBERS = 9  # for each landmark: is it here, where in the patch (2), from the fingers (3), in the world (3)
_RMS_EPS, _ROPE_THETA = 1e-6, 10000.0
_SMOOTH_BINS = 12.0  # neighbouring bins begin with neighbouring weights


def vision_geometry(sizes: Sizes) -> VisionGeometry:
    """The two towers as `split` will read them from the exported checkpoint."""
    towers = tuple(
        TowerGeometry(
            prefix=f"vision_backbone.{name}.",
            dim=dim,
            depth=blocks - 1,
            heads=sizes.tower_heads or 16,
            mlp_dim=4 * dim,
            patch_size=PATCH,
            patches=sizes.patches,
            has_cls=dino,
            registers=4 if dino else 0,
            layer_scale=dino,
            mean=(0.485, 0.456, 0.406) if dino else (0.5, 0.5, 0.5),
            std=(0.229, 0.224, 0.225) if dino else (0.5, 0.5, 0.5),
        )
        for name, dim, blocks, dino in (
            ("featurizer", sizes.dino_dim, sizes.dino_blocks, True),
            ("fused_featurizer", sizes.siglip_dim, sizes.siglip_blocks, False),
        )
    )
    widths = (4 * (sizes.dino_dim + sizes.siglip_dim), sizes.llm_dim, sizes.llm_dim)
    return VisionGeometry(towers, widths, sizes.image_size, Resize.NAIVE, None)


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

    def forward(self, x: Tensor, positions: Tensor, real: Tensor, answers: int) -> Tensor:
        """x: (B, T, dim). real: bool (B, T), False where a sequence is padded on its left. (B, answers, vocab)."""
        length = x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=x.device)
        mask = ((causal & real[:, None, :]) | itself)[:, None]
        layers = list(self.model.get_submodule("layers").children())
        for number, layer in enumerate(layers, start=1):
            x = layer(x, positions, mask, answers if number == len(layers) else length)
        out: Tensor = self.lm_head(self.model.get_submodule("norm")(x))
        return out


class Policy(nn.Module):
    """Images and prompts to action logits; `auxiliary` reads landmarks off the projected patches and isn't exported."""

    def __init__(self, sizes: Sizes = SIZES) -> None:
        super().__init__()
        self.sizes = sizes
        self.edge = EdgeModel(vision_geometry(sizes))
        self.language_model = Llama(sizes)
        self.auxiliary = nn.Sequential(
            nn.LayerNorm(sizes.llm_dim), nn.Linear(sizes.llm_dim, len(LANDMARKS) * AUXILIARY_NUMBERS)
        )
        initialise(self)

    def patches(self, images: Tensor, keep: Tensor, onward: Tensor | None = None) -> Tensor:
        """uint8 (B, S, S, 3) to projected patches (B, K, dim).

        keep: the numbers of the patches that the towers see (B, K), rising. onward: which of those are projected,
        indices into `keep` (B, J), rising; None means all of them.
        """
        side = self.sizes.image_size // PATCH
        cut = images.reshape(len(images), side, PATCH, side, PATCH, 3)  # B, row, y, column, x, channel
        cut = cut.permute(0, 1, 3, 5, 2, 4).flatten(1, 2).flatten(3)  # B, patch, channel, pixel
        chosen = cut.gather(1, keep[:, :, None, None].expand(-1, -1, *cut.shape[2:])).float() / 255.0
        features = []
        for name, normalizer in zip(self.edge.names, self.edge.normalizers, strict=True):
            tower = self.edge.vision_backbone.get_submodule(name)
            assert isinstance(tower, VisionTransformer)
            assert isinstance(normalizer, Normalizer)
            pixels = (chosen - normalizer.mean.view(3, 1)) / normalizer.std.view(3, 1)
            features.append(_tower(tower, pixels.flatten(2), keep))
        joined = torch.cat(features, dim=-1)
        if onward is not None:
            joined = joined.gather(1, onward[:, :, None].expand(-1, -1, joined.shape[2]))
        out: Tensor = self.edge.projector(joined)
        return out

    def sequence(self, patches: Tensor, keep: Tensor, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (B, T, dim), position numbers (B, T), and where the sequence is real, bool (B, T).

        patches and keep: as `patches` gives them, with their numbers. ids: (B, W) without BOS, padded on the left;
        lengths: (B,), how many of a row's ids are real. Padding stands between the patches and the prompt.
        """
        batch, wide = ids.shape
        bos = torch.ones(batch, 1, dtype=torch.long, device=ids.device)
        slots = torch.arange(wide, device=ids.device)[None, :] - (wide - lengths)[:, None]
        image = torch.ones(batch, 1 + keep.shape[1], dtype=torch.bool, device=ids.device)
        x = torch.cat([self.language_model.embed(bos), patches, self.language_model.embed(ids)], dim=1)
        positions = torch.cat([bos - 1, 1 + keep, 1 + self.sizes.patches + slots.clamp(min=0)], dim=1)
        return x, positions, torch.cat([image, slots >= 0], dim=1)

    def forward(self, patches: Tensor, keep: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, 7, vocab) of the last seven positions; see `sequence`."""
        out: Tensor = self.language_model(*self.sequence(patches, keep, ids, lengths), ACTION_DIMS)
        return out


def _tower(tower: VisionTransformer, pixels: Tensor, keep: Tensor) -> Tensor:
    """VisionTransformer.forward on some patches: pixels (B, K, 588), their numbers (B, K)."""
    projection = tower.patch_embed.proj
    x = F.linear(pixels, projection.weight.flatten(1), projection.bias) + tower.pos_embed[0][keep]
    prefix = [token.expand(len(x), -1, -1) for token in (tower.cls_token, tower.reg_token) if token is not None]
    x = torch.cat([*prefix, x], dim=1)
    for block in tower.blocks:
        x = block(x)
    return x[:, tower.prefix_tokens :]


def initialise(policy: Policy) -> None:
    """Positions begin as waves and bins as neighbours of each other, so that neither has to be learned first."""
    for module in policy.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in policy.named_parameters():
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight", "o_proj.weight", "down_proj.weight")):
            parameter.data.mul_(0.5)
        if name.endswith(("cls_token", "reg_token")):
            nn.init.normal_(parameter, std=0.3)
        if name.endswith("pos_embed"):
            parameter.data.copy_(_waves(parameter.shape[1], parameter.shape[2])[None])
    embedding = policy.language_model.model.get_submodule("embed_tokens")
    assert isinstance(embedding, nn.Embedding)
    nn.init.normal_(embedding.weight, std=0.5)
    first = policy.sizes.action_vocab_size - ACTION_BINS
    with torch.no_grad():
        for rows, scale in (
            (embedding.weight, 0.5),
            (policy.language_model.lm_head.weight, policy.sizes.llm_dim**-0.5),
        ):
            rows[first : first + ACTION_BINS] = scale * _smooth(rows.shape[1])


def _waves(patches: int, dim: int) -> Tensor:
    """Sines and cosines of the row and of the column: (patches, dim)."""
    side = math.isqrt(patches)
    speeds = math.pi / side * 2.0 ** torch.linspace(0, 3, dim // 4)
    row, column = torch.arange(patches) // side, torch.arange(patches) % side
    angles = torch.cat([row[:, None] * speeds, column[:, None] * speeds], dim=1)
    return 0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)


def _smooth(dim: int) -> Tensor:
    """Random rows of unit variance whose likeness falls with the distance of their bins: (256, dim)."""
    speeds, phases = torch.randn(dim) / _SMOOTH_BINS, 2 * math.pi * torch.rand(dim)
    return math.sqrt(2.0) * torch.cos(torch.arange(ACTION_BINS)[:, None] * speeds + phases)
