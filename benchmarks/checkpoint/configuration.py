"""The JSON files of a checkpoint but for the tokenizer's: configurations and action statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoint.sizes import ACTION_BINS, PAD_TO_MULTIPLE_OF, Layout, Sizes

# openvla-7b's text_config holds four fields and leaves these out, because they are LlamaConfig's own.
_LLAMA_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


def random_statistics(seed: int) -> dict[str, Any]:
    """`norm_stats` of two made-up robots."""
    return {"widowx_tiny": _statistics(7, seed), "so100_tiny": _statistics(6, seed + 1)}


def write_configuration(path: Path, sizes: Sizes, layout: Layout, statistics: Mapping[str, Any]) -> None:
    """statistics: `norm_stats`, one entry a data set."""
    write_json(path / "config.json", _config(sizes, layout, statistics))
    write_json(path / "preprocessor_config.json", _preprocessor_config(sizes, layout))
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": sizes.pad_token_id}
    write_json(path / "generation_config.json", ids)
    write_json(path / "dataset_statistics.json", statistics)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _config(sizes: Sizes, layout: Layout, statistics: Mapping[str, Any]) -> dict[str, Any]:
    fused = layout == "fused"
    towers = ["vit_large_patch14_reg4_dinov2.lvd142m"] * fused + ["vit_so400m_patch14_siglip_224"]
    config: dict[str, Any] = {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp" if fused else "no-align+gelu-mlp",
        "vision_backbone_id": "dinosiglip-vit-so-224px" if fused else "siglip-vit-so400m",
        "llm_backbone_id": "llama2-7b-pure" if fused else "vicuna-v15-7b",
        "hf_llm_id": "meta-llama/Llama-2-7b-hf" if fused else "lmsys/vicuna-7b-v1.5",
        "use_fused_vision_backbone": fused,
        "timm_model_ids": towers,
        "timm_override_act_layers": [None] * len(towers),
        "image_sizes": [sizes.image_size] * len(towers),
        "image_resize_strategy": "resize-naive" if fused else "letterbox",
        "llm_max_length": 2048,
        "n_action_bins": ACTION_BINS,
        "pad_token_id": sizes.pad_token_id,
        "pad_to_multiple_of": PAD_TO_MULTIPLE_OF,
        "output_projector_states": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "text_config": {
            "model_type": "llama",
            "pad_token_id": sizes.pad_token_id,
            "torch_dtype": "bfloat16",
            "vocab_size": sizes.vocab_rows,
            **{name: value for name, value in _llama_widths(sizes).items() if value != _LLAMA_DEFAULTS.get(name)},
        },
        "norm_stats": statistics,
    }
    if sizes.tower_heads is not None:
        config["timm_model_args"] = [{"num_heads": sizes.tower_heads}] * len(towers)
    return config


def _llama_widths(sizes: Sizes) -> dict[str, int]:
    head_dim = {} if sizes.llm_head_dim is None else {"head_dim": sizes.llm_head_dim}
    return {
        "hidden_size": sizes.llm_dim,
        "intermediate_size": sizes.llm_mlp,
        "num_hidden_layers": sizes.llm_layers,
        "num_attention_heads": sizes.llm_heads,
        "num_key_value_heads": sizes.llm_heads,
        **head_dim,
    }


def _preprocessor_config(sizes: Sizes, layout: Layout) -> dict[str, Any]:
    fused = layout == "fused"
    towers = 1 + fused
    means = [[0.485, 0.456, 0.406]] * fused + [[0.5, 0.5, 0.5]]
    stds = [[0.229, 0.224, 0.225]] * fused + [[0.5, 0.5, 0.5]]
    side = sizes.image_size
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "processor_class": "PrismaticProcessor",
        "use_fused_vision_backbone": fused,
        "image_resize_strategy": "resize-naive" if fused else "letterbox",
        "input_sizes": [[3, side, side]] * towers,
        "interpolations": ["bicubic"] * towers,
        "means": means,
        "stds": stds,
        "tvf_resize_params": [
            {"size": [side, side] if fused else side, "interpolation": 3, "max_size": None, "antialias": True}
        ]
        * towers,
        "tvf_crop_params": [{"output_size": [side, side]}] * towers,
        # Rounded as in openvla-7b's own file, which was written under bfloat16.
        "tvf_normalize_params": [
            {"mean": _in_bfloat16(mean), "std": _in_bfloat16(std), "inplace": False}
            for mean, std in zip(means, stds, strict=True)
        ],
        "tvf_do_letterbox": not fused,
        "tvf_letterbox_fill": None if fused else [127, 127, 127],
    }


def _in_bfloat16(values: list[float]) -> list[float]:
    rounded: list[float] = torch.tensor(values, dtype=torch.bfloat16).tolist()
    return rounded


def _statistics(dims: int, seed: int) -> dict[str, Any]:
    """End-effector deltas of a few centimetres and tenths of a radian; the last dimension is the gripper, unscaled."""
    generator = torch.Generator().manual_seed(1000 + seed)
    reach = [round(float(value), 6) for value in 0.02 + 0.05 * torch.rand(dims - 1, generator=generator)]
    action: dict[str, Any] = {
        "mean": [0.0] * dims,
        "std": [value / 3 for value in reach] + [0.5],
        "min": [-2 * value for value in reach] + [0.0],
        "max": [2 * value for value in reach] + [1.0],
        "q01": [-value for value in reach] + [0.0],
        "q99": [value * 0.95 for value in reach] + [1.0],
        "mask": [True] * (dims - 1) + [False],
    }
    proprio = {name: [0.0] * dims for name in ("mean", "std", "min", "max", "q01", "q99")}
    return {"action": action, "proprio": proprio, "num_transitions": 1000, "num_trajectories": 20}
