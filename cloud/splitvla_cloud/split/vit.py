"""The robot's half of the model in torch: two small ViTs with timm's parameter names, and the projector.

Sources: timm's vision_transformer.py (pre-norm, LayerNorm eps 1e-6, exact GELU) and OpenVLA's
modeling_prismatic.py (features after the last but one block, LayerScale called scale_factor, no final norm).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from splitvla_cloud.split.geometry import TowerGeometry, VisionGeometry

_EPS = 1e-6


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return out


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Block(nn.Module):
    def __init__(self, tower: TowerGeometry) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(tower.dim, eps=_EPS)
        self.attn = Attention(tower.dim, tower.heads)
        self.ls1 = LayerScale(tower.dim) if tower.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(tower.dim, eps=_EPS)
        self.mlp = Mlp(tower.dim, tower.mlp_dim)
        self.ls2 = LayerScale(tower.dim) if tower.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class PatchEmbed(nn.Module):
    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


class VisionTransformer(nn.Module):
    """Normalised pixels (B, 3, S, S) to patch features (B, patches, dim), after `depth` blocks and no final norm."""

    def __init__(self, tower: TowerGeometry) -> None:
        super().__init__()
        self.prefix_tokens = int(tower.has_cls) + tower.registers
        self.patch_embed = PatchEmbed(tower.dim, tower.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, tower.patches, tower.dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, tower.dim)) if tower.has_cls else None
        self.reg_token = nn.Parameter(torch.zeros(1, tower.registers, tower.dim)) if tower.registers else None
        self.blocks = nn.ModuleList(Block(tower) for _ in range(tower.depth))

    def embed(self, x: Tensor) -> Tensor:
        """What the first block takes: patches with their positions, behind the prefix tokens."""
        # Positions belong to the patches alone: timm's no_embed_class, with the cls position folded into cls_token.
        x = self.patch_embed(x) + self.pos_embed
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        return torch.cat([*prefix, x], dim=1) if prefix else x

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x[:, self.prefix_tokens :]


class Normalizer(nn.Module):
    """uint8 (B, S, S, 3) to float32 (B, 3, S, S), bit for bit as torchvision's to_tensor and normalize."""

    mean: Tensor
    std: Tensor

    def __init__(self, tower: TowerGeometry) -> None:
        super().__init__()
        # On the CPU even where the model is laid out on the meta device: these come from no checkpoint tensor.
        for name, values in (("mean", tower.mean), ("std", tower.std)):
            constant = torch.tensor(values, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        # Three separate operations in this order: folding them into one multiply-add rounds differently.
        pixels = image.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        return (pixels - self.mean) / self.std


class Projector(nn.Module):
    """fc1, GELU, fc2 (and GELU, fc3 behind two fused towers)."""

    def __init__(self, fan_in: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.depth = len(widths)
        for number, width in enumerate(widths, start=1):
            self.add_module(f"fc{number}", nn.Linear(fan_in, width))
            fan_in = width

    def forward(self, x: Tensor) -> Tensor:
        x = self.get_submodule("fc1")(x)
        for number in range(2, self.depth + 1):
            x = self.get_submodule(f"fc{number}")(F.gelu(x))
        return x


class EdgeModel(nn.Module):
    """uint8 RGB image (1, S, S, 3) to projected patch embeddings float32 (1, patches, embed_dim).

    The keys of its state_dict are the checkpoint's tensor names, those of `vision_shapes`.
    """

    def __init__(self, vision: VisionGeometry) -> None:
        super().__init__()
        self.normalizers = nn.ModuleList(Normalizer(tower) for tower in vision.towers)
        self.vision_backbone = nn.Module()
        self.names = tuple(tower.prefix.split(".")[1] for tower in vision.towers)
        for name, tower in zip(self.names, vision.towers, strict=True):
            self.vision_backbone.add_module(name, VisionTransformer(tower))
        self.projector = Projector(sum(tower.dim for tower in vision.towers), vision.projector_widths)

    def features(self, image: Tensor) -> list[Tensor]:
        """Each tower's patch features, before they are joined and projected."""
        towers = [self.vision_backbone.get_submodule(name) for name in self.names]
        return [tower(normalize(image)) for normalize, tower in zip(self.normalizers, towers, strict=True)]

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.projector(torch.cat(self.features(image), dim=-1))
        return out
