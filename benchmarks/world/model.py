"""The policy as it is trained: the product's own vision module, a plain Llama, and an auxiliary head for training.

Parameter names are those of the checkpoint. Two things make training on a processor possible, and neither changes what
the model computes when it acts: patches may be left out (their positions stay), and several sentences may be asked of
one picture, which is then computed once.
Source: openvla's modeling_prismatic.py for the sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from benchmarks.checkpoint.sizes import ACTION_BINS, PATCH, Sizes
from benchmarks.world.llama import Llama, attention_mask
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


@dataclass(frozen=True, slots=True)
class Thought:
    """What went into each layer (B, T, dim), at which positions, under which mask; the end is P prompts of W ids."""

    inputs: list[Tensor]
    positions: Tensor
    mask: Tensor
    prompts: int
    wide: int

    def ends(self) -> Tensor:
        """(B, P, dim): what the last layer is given where a prompt ends and nothing is said yet."""
        prompts = self.inputs[-1][:, -self.prompts * self.wide :]
        return prompts.reshape(len(prompts), self.prompts, self.wide, -1)[:, :, -ACTION_DIMS]


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

        patches and keep: as `patches` gives them, with their numbers. ids: (B, P, W), P prompts for the one picture,
        without BOS, padded on the left; lengths: (B, P), how many of a prompt's ids are real. The prompts stand one
        after another, each at the positions that it would have alone.
        """
        batch, _, wide = ids.shape
        bos = torch.ones(batch, 1, dtype=torch.long, device=ids.device)
        slots = (torch.arange(wide, device=ids.device) - (wide - lengths)[:, :, None]).flatten(1)
        image = torch.ones(batch, 1 + keep.shape[1], dtype=torch.bool, device=ids.device)
        x = torch.cat([self.language_model.embed(bos), patches, self.language_model.embed(ids.flatten(1))], dim=1)
        positions = torch.cat([bos - 1, 1 + keep, 1 + self.sizes.patches + slots.clamp(min=0)], dim=1)
        return x, positions, torch.cat([image, slots >= 0], dim=1)

    def forward(self, patches: Tensor, keep: Tensor, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Thought]:
        """Logits (B, P, 7, vocab) of the last seven positions of each prompt, see `sequence`."""
        batch, prompts, wide = ids.shape
        x, positions, real = self.sequence(patches, keep, ids, lengths)
        mask = attention_mask(real, prompts, wide)
        inputs, after = self.language_model(x, positions, mask, ACTION_DIMS if prompts == 1 else prompts * wide)
        after = after.reshape(batch, prompts, -1, after.shape[-1])[:, :, -ACTION_DIMS:]
        return self.language_model.lm_head(after), Thought(inputs, positions, mask, prompts, wide)

    def attends(self, thought: Thought, layer: int, places: Tensor) -> tuple[Tensor, Tensor]:
        """What the first head of a layer attends to from places (B, P, n) in the prompts.

        Returns the shares of the patches (B, P, n, K), and those of the own prompt's tokens (B, P, n, W).
        """
        batch, prompts, count = places.shape
        x = thought.inputs[layer]
        starts = x.shape[1] + thought.wide * torch.arange(-prompts, 0, device=x.device)
        flat = (starts[:, None] + places).flatten(1)
        shares = self.language_model.attends(layer, x, thought.positions, thought.mask, flat)
        shares = shares.reshape(batch, prompts, count, -1)
        picture, said = shares[..., : -prompts * thought.wide], shares[..., -prompts * thought.wide :]
        own = torch.arange(prompts, device=x.device)
        said = said.reshape(batch, prompts, count, prompts, thought.wide)[:, own, :, own].transpose(0, 1)
        return picture[..., 1:], said


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
