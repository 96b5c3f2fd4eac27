"""The encoder in float32 whose weights pass through memory one layer at a time: for one image, and little memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from splitvla_cloud.split.geometry import VisionGeometry
from splitvla_cloud.split.tensor_file import StoredTensor
from splitvla_cloud.split.vit import EdgeModel, VisionTransformer


def streamed_edge_model(
    vision: VisionGeometry, tensors: Mapping[str, StoredTensor], advance: Callable[[int], None]
) -> EdgeModel:
    """A model whose layers read their weights when they are called and let go of them when they have answered.

    `advance` gets the bytes of each tensor that was read. Tokens and positions are small and stay.
    """
    with torch.device("meta"):
        model = EdgeModel(vision)

    def load(module: nn.Module, prefix: str) -> None:
        state = {}
        for name, _ in module.named_parameters(recurse=False):
            entry = tensors[f"{prefix}.{name}"]
            state[name] = entry.read().float()
            advance(entry.size)
        module.load_state_dict(state, strict=False, assign=True)

    def reader(prefix: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: load(module, prefix)

    for prefix, module in model.named_modules():
        if isinstance(module, VisionTransformer):
            load(module, prefix)
        elif any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(reader(prefix))
            module.register_forward_hook(_forget)
    return model.eval().requires_grad_(False)


def _forget(module: nn.Module, inputs: Any, output: Any) -> None:
    module.to("meta")
