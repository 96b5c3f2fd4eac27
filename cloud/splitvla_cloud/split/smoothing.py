"""Exact rescaling of the encoder before it is quantised: outlying activations move into the weights.

8-bit activations share one scale a tensor, so a few large channels drown the others. Dividing a channel by s where it
is made, and multiplying the weights that read it by s, changes nothing but the rounding. Channels of a LayerNorm are
divided in its gain and bias, those of the attention's values in the rows that make them.

Source: SmoothQuant (arXiv:2211.10438), s = max|x|^alpha / max|w|^(1 - alpha), alpha 0.5. The encoder passes through one
block at a time: memory is one block and the frames' activations, never the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from splitvla_cloud.split.geometry import TowerGeometry, VisionGeometry
from splitvla_cloud.split.tensor_file import StoredTensor
from splitvla_cloud.split.vit import Block, Normalizer, Projector, VisionTransformer
from splitvla_shared.nouns import FloatArray, Image

ALPHA = 0.5
M = TypeVar("M", bound=nn.Module)
_LARGEST = 1e4  # of a factor; its reciprocal is the smallest


@dataclass(frozen=True, slots=True)
class Factors:
    """What a tensor is multiplied by: `rows` (output channels) along its first axis, `columns` along its last."""

    rows: Tensor | None = None
    columns: Tensor | None = None


@dataclass(frozen=True, slots=True)
class RescaledTensor:
    """`base` times its factors, float32; read as any StoredTensor of the base's name and shape."""

    base: StoredTensor
    factors: Factors
    dtype: str = "F32"

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def file(self) -> Path:
        return self.base.file

    @property
    def size(self) -> int:
        return 4 * int(np.prod(self.base.shape))

    def read(self) -> Tensor:
        return _scaled(self.base.read().float(), self.factors)


@dataclass(frozen=True, slots=True)
class Calibration:
    """embeddings: what the float32 encoder gives for the frames, (frames, patches, embed_dim).

    factors: by tensor name, for `rescaled`.
    """

    embeddings: FloatArray
    factors: Mapping[str, Factors]


@torch.inference_mode()
def calibrate(
    vision: VisionGeometry,
    tensors: Mapping[str, StoredTensor],
    frames: list[Image],
    advance: Callable[[int], None],
) -> Calibration:
    """Run square uint8 RGB frames through the float32 encoder, and choose the factors of every block on the way.

    `advance` is told the stored bytes of the weights that were run.
    """
    factors: dict[str, Factors] = {}
    images = torch.from_numpy(np.stack(frames))
    features = [_run_tower(tower, tensors, images, factors, advance) for tower in vision.towers]
    width = sum(tower.dim for tower in vision.towers)
    projector = _loaded(lambda: Projector(width, vision.projector_widths), tensors, "projector.", advance)
    embeddings = projector(torch.cat(features, dim=-1))
    return Calibration(embeddings.numpy(), factors)


def rescaled(tensors: Mapping[str, StoredTensor], factors: Mapping[str, Factors]) -> dict[str, StoredTensor]:
    """The same tensors, those with factors multiplied when they are read."""
    return {name: RescaledTensor(entry, factors[name]) if name in factors else entry for name, entry in tensors.items()}


def _run_tower(
    tower: TowerGeometry,
    tensors: Mapping[str, StoredTensor],
    images: Tensor,
    factors: dict[str, Factors],
    advance: Callable[[int], None],
) -> Tensor:
    stem = dataclasses.replace(tower, depth=0)
    vit = _loaded(lambda: VisionTransformer(stem), tensors, tower.prefix, advance)
    # Frame by frame, as the robot runs it: a batch would hold every frame's wide activations at once.
    states = [vit.embed(Normalizer(tower)(image[None])) for image in images]
    for index in range(tower.depth):
        prefix = f"{tower.prefix}blocks.{index}."
        block = _loaded(lambda: Block(tower), tensors, prefix, advance)
        with _InputRanges(block, ("attn.qkv", "attn.proj", "mlp.fc1")) as ranges:
            states = [block(state) for state in states]
        factors |= {prefix + name: value for name, value in _block_factors(block, ranges).items()}
    return torch.cat([state[:, vit.prefix_tokens :] for state in states])


def _block_factors(block: Block, ranges: Mapping[str, Tensor]) -> dict[str, Factors]:
    qkv, proj, fc1 = block.attn.qkv.weight, block.attn.proj.weight, block.mlp.fc1.weight
    dim = proj.shape[0]
    # The values first: the rows that make them are rescaled before the columns of qkv are looked at.
    values = _choose(ranges["attn.proj"], proj)
    rows = torch.ones(3 * dim)
    rows[2 * dim :] = 1 / values
    first = _choose(ranges["attn.qkv"], _scaled(qkv, Factors(rows)))
    second = _choose(ranges["mlp.fc1"], fc1)
    factors = {
        "attn.qkv.weight": Factors(rows, first),
        "attn.qkv.bias": Factors(rows),
        "attn.proj.weight": Factors(columns=values),
        "mlp.fc1.weight": Factors(columns=second),
    }
    for norm, divisor in (("norm1", first), ("norm2", second)):
        factors |= {f"{norm}.{part}": Factors(1 / divisor) for part in ("weight", "bias")}
    return factors


def _choose(activation: Tensor, weight: Tensor) -> Tensor:
    """One factor an input channel of `weight`; 1 where the channel is dead on either side."""
    columns = weight.abs().amax(dim=0)
    factor = activation.pow(ALPHA) / columns.pow(1 - ALPHA)
    dead = (activation == 0) | (columns == 0)
    return torch.where(dead, torch.ones_like(factor), factor.clamp(1 / _LARGEST, _LARGEST))


def _scaled(tensor: Tensor, factors: Factors) -> Tensor:
    if factors.rows is not None:
        tensor = tensor * factors.rows.view(-1, *(1,) * (tensor.ndim - 1))
    return tensor if factors.columns is None else tensor * factors.columns


class _InputRanges:
    """Largest magnitude of every input channel of some linear layers, while the block `with` this runs."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        self._ranges: dict[str, Tensor] = {}
        self._hooks = [module.get_submodule(name).register_forward_pre_hook(self._noting(name)) for name in names]

    def __enter__(self) -> dict[str, Tensor]:
        return self._ranges

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _noting(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].abs().flatten(0, -2).amax(dim=0)
            known = self._ranges.get(name)
            self._ranges[name] = seen if known is None else torch.maximum(known, seen)

        return note


def _loaded(
    make: Callable[[], M], tensors: Mapping[str, StoredTensor], prefix: str, advance: Callable[[int], None]
) -> M:
    """A module with the tensors below `prefix`, in float32."""
    with torch.device("meta"):
        module = make()
    names = list(module.state_dict())
    module.load_state_dict({name: tensors[prefix + name].read().float() for name in names}, strict=True, assign=True)
    advance(sum(tensors[prefix + name].size for name in names))
    return module.eval().requires_grad_(False)
