"""A small checkpoint in openvla-7b's exact layout: seeded random weights and a tokenizer made in code.

    python -m benchmarks.tiny_checkpoint OUT [--seed N]

It says nothing about how well a robot is driven. It exists so that every program, test and benchmark runs without a
15 GB download: about 2.7 MB, two ViT towers, two Llama layers, 1024 token pieces of which the last 256 are actions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

Layout = Literal["fused", "siglip-v01"]
ACTION_BINS = 256
PAD_TO_MULTIPLE_OF = 64
_PATCH = 14
_SPECIALS = ("<unk>", "<s>", "</s>")
_SPACE = "\u2581"
_WORDS = (
    "In: What action should the robot take to Out: put push pull pick place move lift open close turn slide stack wipe "
    "fold pour cover remove reach grasp up down left right on in into onto from of off near under the a and then spoon "
    "towel carrot plate pot pan cup can bowl block cube drawer door cloth table sink stove eggplant corn knife fork "
    "red green blue yellow orange black white small large top bottom front back middle coke apple banana lid bread"
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths and depths. `*_blocks` count the last block, which is stored and never used, as in openvla-7b.

    tower_heads None leaves `timm_model_args` out of config.json, which means 16 heads. llm_dim and llm_mlp are
    multiples of 64 because 4-bit weights need that on a CPU.
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
    action_vocab_size: int = 1024

    @property
    def patches(self) -> int:
        return (self.image_size // _PATCH) ** 2

    @property
    def vocab_rows(self) -> int:
        return self.action_vocab_size + PAD_TO_MULTIPLE_OF


def write_tiny_checkpoint(
    path: Path,
    *,
    seed: int = 0,
    sizes: Sizes | None = None,
    layout: Layout = "fused",
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int | None = None,
) -> None:
    """Write config, statistics, tokenizer and safetensors into `path`, which is made where it is missing.

    layout "fused" is openvla-7b's two towers; "siglip-v01" is openvla-v01-7b's one tower, letterbox and Vicuna prompt.
    max_shard_bytes splits the weights over several files with an index; None writes one model.safetensors.
    The same arguments give the same bytes.
    """
    sizes = sizes or Sizes()
    path.mkdir(parents=True, exist_ok=True)
    statistics = {"widowx_tiny": _statistics(7, seed), "so100_tiny": _statistics(6, seed + 1)}
    _write_json(path / "config.json", _config(sizes, layout, statistics))
    _write_json(path / "preprocessor_config.json", _preprocessor_config(sizes, layout))
    _write_json(path / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": _pad(sizes)})
    _write_json(path / "dataset_statistics.json", statistics)
    _write_tokenizer(path, sizes)
    _write_weights(path, dict(_weights(sizes, layout, seed, dtype)), max_shard_bytes)


# --- configuration ----------------------------------------------------------------------------------------------------


def _pad(sizes: Sizes) -> int:
    return sizes.action_vocab_size


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
        "pad_token_id": _pad(sizes),
        "pad_to_multiple_of": PAD_TO_MULTIPLE_OF,
        "output_projector_states": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "text_config": {
            "model_type": "llama",
            "pad_token_id": _pad(sizes),
            "torch_dtype": "bfloat16",
            "vocab_size": sizes.vocab_rows,
            "hidden_size": sizes.llm_dim,
            "intermediate_size": sizes.llm_mlp,
            "num_hidden_layers": sizes.llm_layers,
            "num_attention_heads": sizes.llm_heads,
            "num_key_value_heads": sizes.llm_heads,
        },
        "norm_stats": statistics,
    }
    if sizes.tower_heads is not None:
        config["timm_model_args"] = [{"num_heads": sizes.tower_heads}] * len(towers)
    return config


def _preprocessor_config(sizes: Sizes, layout: Layout) -> dict[str, Any]:
    fused = layout == "fused"
    towers = 1 + fused
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "processor_class": "PrismaticProcessor",
        "use_fused_vision_backbone": fused,
        "image_resize_strategy": "resize-naive" if fused else "letterbox",
        "input_sizes": [[3, sizes.image_size, sizes.image_size]] * towers,
        "interpolations": ["bicubic"] * towers,
        "means": [[0.485, 0.456, 0.406]] * fused + [[0.5, 0.5, 0.5]],
        "stds": [[0.229, 0.224, 0.225]] * fused + [[0.5, 0.5, 0.5]],
        "tvf_do_letterbox": not fused,
        "tvf_letterbox_fill": None if fused else [127, 127, 127],
    }


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


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


# --- tokenizer --------------------------------------------------------------------------------------------------------


def _pieces(action_vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in Llama-2's order: specials, bytes, merged pieces, single characters, actions last."""
    merges: dict[tuple[str, str], None] = {}
    for word in _WORDS.split():
        spelled = _SPACE + word
        for end in range(1, len(spelled)):
            merges[spelled[:end], spelled[end]] = None
    alphabet = [_SPACE, "\n"] + [chr(code) for code in range(33, 127)]
    first = [*_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    named = [*first, *dict.fromkeys(left + right for left, right in merges), *alphabet]
    room = action_vocab_size - ACTION_BINS - len(named)
    if room < 0:
        raise SystemExit(f"action_vocab_size is {action_vocab_size}, at least {action_vocab_size - room} are needed")
    filler = [chr(0x100 + index) for index in range(room)]
    actions = [chr(0x4E00 + index) for index in range(ACTION_BINS)]
    return {piece: index for index, piece in enumerate([*named, *filler, *actions])}, list(merges)


def _write_tokenizer(path: Path, sizes: Sizes) -> None:
    vocab, merges = _pieces(sizes.action_vocab_size)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (*_SPECIALS, "<PAD>")])
    tokenizer.save(str(path / "tokenizer.json"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<PAD>"}
    _write_json(path / "special_tokens_map.json", names)
    _write_json(path / "added_tokens.json", {"<PAD>": _pad(sizes)})
    _write_json(
        path / "tokenizer_config.json",
        {
            **names,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "model_max_length": 2048,
            "padding_side": "right",
            "tokenizer_class": "LlamaTokenizer",
        },
    )


# --- weights ----------------------------------------------------------------------------------------------------------

Draw = Callable[..., torch.Tensor]


def _weights(sizes: Sizes, layout: Layout, seed: int, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return (mean + std * torch.randn(*shape, generator=generator)).to(dtype)

    fused = layout == "fused"
    if fused:
        yield from _tower(draw, "vision_backbone.featurizer.", sizes.dino_dim, sizes.dino_blocks, sizes.patches, 4)
    name = "fused_featurizer" if fused else "featurizer"
    yield from _tower(draw, f"vision_backbone.{name}.", sizes.siglip_dim, sizes.siglip_blocks, sizes.patches, 0)
    dim = sizes.siglip_dim + sizes.dino_dim * fused
    widths = [dim, 4 * dim, sizes.llm_dim, sizes.llm_dim] if fused else [dim, sizes.llm_dim, sizes.llm_dim]
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
        yield from _linear(draw, f"projector.fc{index}", fan_in, fan_out, gain=1.7)
    yield from _llama(draw, sizes)


def _linear(draw: Draw, name: str, fan_in: int, fan_out: int, gain: float = 1.0) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{name}.weight", draw(fan_out, fan_in, std=gain / math.sqrt(fan_in))
    yield f"{name}.bias", draw(fan_out, std=0.1)


def _norm(draw: Draw, name: str, dim: int) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{name}.weight", draw(dim, std=0.1, mean=1.0)
    yield f"{name}.bias", draw(dim, std=0.1)


def _tower(
    draw: Draw, prefix: str, dim: int, blocks: int, patches: int, registers: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """DINO-like with registers, SigLIP-like (attention pool, no prefix tokens) without."""
    if registers:
        yield f"{prefix}cls_token", draw(1, 1, dim)
        yield f"{prefix}reg_token", draw(1, registers, dim)
    yield f"{prefix}pos_embed", draw(1, patches, dim, std=0.5)
    yield f"{prefix}patch_embed.proj.weight", draw(dim, 3, _PATCH, _PATCH, std=2.0 / math.sqrt(3 * _PATCH**2))
    yield f"{prefix}patch_embed.proj.bias", draw(dim, std=0.1)
    for index in range(blocks):
        block = f"{prefix}blocks.{index}."
        yield from _norm(draw, f"{block}norm1", dim)
        yield from _linear(draw, f"{block}attn.qkv", dim, 3 * dim, gain=1.5)
        yield from _linear(draw, f"{block}attn.proj", dim, dim)
        if registers:
            yield f"{block}ls1.scale_factor", draw(dim, std=0.2, mean=0.7)
        yield from _norm(draw, f"{block}norm2", dim)
        yield from _linear(draw, f"{block}mlp.fc1", dim, _mlp(dim, registers))
        yield from _linear(draw, f"{block}mlp.fc2", _mlp(dim, registers), dim)
        if registers:
            yield f"{block}ls2.scale_factor", draw(dim, std=0.2, mean=0.7)
    yield from _norm(draw, f"{prefix}norm", dim)
    if not registers:
        pool = f"{prefix}attn_pool."
        yield f"{pool}latent", draw(1, 1, dim)
        for name, fan_in, fan_out in (("q", dim, dim), ("kv", dim, 2 * dim), ("proj", dim, dim)):
            yield from _linear(draw, pool + name, fan_in, fan_out)
        yield from _norm(draw, f"{pool}norm", dim)
        yield from _linear(draw, f"{pool}mlp.fc1", dim, _mlp(dim, registers))
        yield from _linear(draw, f"{pool}mlp.fc2", _mlp(dim, registers), dim)


def _mlp(dim: int, registers: int) -> int:
    return 4 * dim if registers else int(3.7362 * dim)


def _llama(draw: Draw, sizes: Sizes) -> Iterator[tuple[str, torch.Tensor]]:
    """Sharp attention, so that patches and words both reach the answer; loud action rows, so that actions win."""
    root, dim, mlp = "language_model.", sizes.llm_dim, sizes.llm_mlp
    yield f"{root}model.embed_tokens.weight", draw(sizes.vocab_rows, dim)
    for index in range(sizes.llm_layers):
        layer = f"{root}model.layers.{index}."
        for name, gain in (("q", 2.5), ("k", 2.5), ("v", 1.0), ("o", 2.0)):
            yield f"{layer}self_attn.{name}_proj.weight", draw(dim, dim, std=gain / math.sqrt(dim))
        for name, rows, columns in (("gate", mlp, dim), ("up", mlp, dim), ("down", dim, mlp)):
            yield f"{layer}mlp.{name}_proj.weight", draw(rows, columns, std=1.5 / math.sqrt(columns))
        yield f"{layer}input_layernorm.weight", draw(dim, std=0.1, mean=1.0)
        yield f"{layer}post_attention_layernorm.weight", draw(dim, std=0.1, mean=1.0)
    yield f"{root}model.norm.weight", draw(dim, std=0.1, mean=1.0)
    head = draw(sizes.vocab_rows, dim, std=0.25 / math.sqrt(dim))
    head[sizes.action_vocab_size - ACTION_BINS : sizes.action_vocab_size] *= 16
    yield f"{root}lm_head.weight", head


def _write_weights(path: Path, tensors: Mapping[str, torch.Tensor], max_shard_bytes: int | None) -> None:
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = limit = max_shard_bytes or 1 << 62
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], path / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(path / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tiny_checkpoint", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_tiny_checkpoint(arguments.out, seed=arguments.seed)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
