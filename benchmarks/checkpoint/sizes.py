"""Widths and depths of a checkpoint, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Layout = Literal["fused", "siglip-v01"]
ACTION_BINS = 256
PAD_TO_MULTIPLE_OF = 64
PATCH = 14


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths and depths. `*_blocks` count the last block, which is stored and never used, as in openvla-7b.

    tower_heads None leaves `timm_model_args` out of config.json, which means 16 heads. llm_dim and llm_mlp are
    multiples of 64 because 4-bit weights need that on a CPU. llm_head_dim None is llm_dim / llm_heads.
    """

    dino_dim: int = 64
    dino_blocks: int = 3
    siglip_dim: int = 80
    siglip_blocks: int = 3
    tower_heads: int | None = None
    image_size: int = 224
    llm_dim: int = 128
    llm_mlp: int = 256
    llm_layers: int = 2
    llm_heads: int = 4
    llm_head_dim: int | None = None
    action_vocab_size: int = 1024

    @property
    def patches(self) -> int:
        return (self.image_size // PATCH) ** 2

    @property
    def llm_attention_dim(self) -> int:
        """Width of queries, keys and values together."""
        return self.llm_dim if self.llm_head_dim is None else self.llm_heads * self.llm_head_dim

    @property
    def vocab_rows(self) -> int:
        return self.action_vocab_size + PAD_TO_MULTIPLE_OF

    @property
    def pad_token_id(self) -> int:
        return self.action_vocab_size


PRESETS: dict[str, Sizes] = {
    "tiny": Sizes(),
    # openvla-7b's bytes on the wire in front of little arithmetic: what a CPU measures the framework with.
    "wire": Sizes(llm_dim=4096, llm_mlp=256, llm_heads=4, llm_head_dim=64),
    # The same bytes in front of as good as none: what a server does besides the model, many robots at a time.
    "thin": Sizes(llm_dim=4096, llm_mlp=64, llm_layers=1, llm_heads=1, llm_head_dim=64),
    # Half of every width and depth; the whole vocabulary.
    "half": Sizes(512, 12, 576, 14, None, 224, 2048, 5504, 16, 16, None, 32000),
    # openvla-7b: 982 tensors, 7,541,237,184 parameters, 15.1 GB in bfloat16.
    "7b": Sizes(1024, 24, 1152, 27, None, 224, 4096, 11008, 32, 32, None, 32000),
}
