"""What the backbone's first layer makes of an error in an embedding: its keys and values, behind its norm.

The embedding enters the model there and nowhere else but along the residual stream. Norms divide by a row's length,
which an error hardly changes, and multiply by their gain, which stands in the matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from splitvla_cloud.split.tensor_file import StoredTensor
from splitvla_shared.codec.sensitivity import Sensitivity, save_sensitivity

_LAYER = "model.layers.0."


def write_sensitivity(tensors: Mapping[str, StoredTensor], edge: Path) -> None:
    """Measure it and write it into the edge bundle. tensors: of the language model, by LlamaForCausalLM's names."""
    gain = tensors[f"{_LAYER}input_layernorm.weight"].read().float()
    total = torch.zeros(len(gain), len(gain))
    for name in ("k_proj", "v_proj"):
        seen = tensors[f"{_LAYER}self_attn.{name}.weight"].read().float() * gain
        total.addmm_(seen.T, seen)
    if not float(total.trace()) > 0:  # a model without keys and values: every direction is as good
        total = torch.eye(len(gain))
    save_sensitivity(edge, Sensitivity(total.numpy()))
