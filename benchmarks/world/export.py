"""A training run becomes a checkpoint in OpenVLA's own layout, which nothing in the product tells from a large one.

    python -m benchmarks.world.export RUN OUT

The running mean of the weights is stored in bfloat16. What openvla-7b stores and never runs is there too, as zeros: the
last block and the final norm of each tower, and SigLIP's attention pool. The auxiliary head is left behind.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.checkpoint.configuration import write_configuration
from benchmarks.checkpoint.sizes import Sizes
from benchmarks.world.model import SIZES
from benchmarks.world.vocabulary import action_statistics, write_words

WEIGHTS = "model.safetensors"
_EDGE, _AUXILIARY = "edge.", "auxiliary."
_TOWERS = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
_POOL = "vision_backbone.fused_featurizer.attn_pool."


def to_checkpoint(weights: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """A policy's weights under the checkpoint's names, in bfloat16, with what is stored and never used."""
    named = {name.removeprefix(_EDGE): value for name, value in weights.items() if not name.startswith(_AUXILIARY)}
    blocks = dict(zip(_TOWERS, (sizes.dino_blocks, sizes.siglip_blocks), strict=True))
    for tower, count in blocks.items():
        first = f"{tower}blocks.0."
        unused = {name: value for name, value in named.items() if name.startswith(first)}
        named |= {
            f"{tower}blocks.{count - 1}.{name.removeprefix(first)}": torch.zeros_like(value)
            for name, value in unused.items()
        }
        dim = named[f"{tower}pos_embed"].shape[-1]
        named |= _affine(f"{tower}norm", (dim,))
    named |= _pool(sizes.siglip_dim, named[f"{_TOWERS[1]}blocks.0.mlp.fc1.bias"].shape[0])
    return {name: value.to(torch.bfloat16).contiguous() for name, value in sorted(named.items())}


def from_checkpoint(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way: a policy's own names. What is never used keeps its name, which no policy has."""
    return {name if name.startswith("language_model.") else _EDGE + name: value for name, value in weights.items()}


def _affine(name: str, weight: tuple[int, ...]) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.zeros(weight), f"{name}.bias": torch.zeros(weight[0])}


def _pool(dim: int, mlp: int) -> dict[str, Tensor]:
    tensors = {f"{_POOL}latent": torch.zeros(1, 1, dim), **_affine(f"{_POOL}norm", (dim,))}
    for name, shape in (
        ("q", (dim, dim)),
        ("kv", (2 * dim, dim)),
        ("proj", (dim, dim)),
        ("mlp.fc1", (mlp, dim)),
        ("mlp.fc2", (dim, mlp)),
    ):
        tensors |= _affine(_POOL + name, shape)
    return tensors


def export(run: Path, out: Path, sizes: Sizes = SIZES) -> None:
    """Write the whole folder but for its model card."""
    saved = torch.load(run / "latest.pt", map_location="cpu", weights_only=True)
    out.mkdir(parents=True, exist_ok=True)
    write_configuration(out, sizes, "fused", action_statistics())
    write_words(out, sizes)
    save_file(to_checkpoint(saved["smooth"], sizes), out / WEIGHTS, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.world.export", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("out", type=Path, help="folder of the checkpoint")
    arguments = parser.parse_args()
    export(arguments.run, arguments.out)
    size = (arguments.out / WEIGHTS).stat().st_size
    print(f"wrote {arguments.out}, {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
