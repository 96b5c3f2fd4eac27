"""The GPU host's half as a plain LlamaForCausalLM folder that transformers, and any engine that reads one, opens."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from splitvla_cloud.split.fields import Fields
from splitvla_cloud.split.geometry import LanguageGeometry
from splitvla_cloud.split.tensor_file import TensorEntry, shard, write_tensors
from splitvla_cloud.split.weights import INDEX, SINGLE

SHARD_BYTES = 4_000_000_000
_TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json")
# They name remote code of the unsplit model, which the plain folder has no use for.
_REMOTE_CODE_KEYS = ("auto_map", "processor_class")


def export_backbone(
    language: LanguageGeometry,
    tensors: Mapping[str, TensorEntry],
    source: Path,
    out: Path,
    advance: Callable[[int], None],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config, weights in the type they are stored in, and the tokenizer of `source` into the folder `out`.

    Holds one tensor in memory at a time. `advance` gets the bytes of each tensor once it is written.
    """
    dtype = _TORCH_DTYPES[tensors["model.embed_tokens.weight"].dtype]
    _write_json(out / "config.json", _llama_config(language, dtype))
    ids = {"bos_token_id": language.bos_token_id, "eos_token_id": language.eos_token_id}
    _write_json(out / "generation_config.json", ids | {"pad_token_id": language.pad_token_id, "do_sample": False})
    _write_weights(tensors, out, advance, shard_bytes)
    _copy_tokenizer(source, out)


def _llama_config(language: LanguageGeometry, dtype: str) -> dict[str, Any]:
    """Every field spelled out: LlamaConfig's defaults have changed between versions of transformers."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **dataclasses.asdict(language),
        # Where transformers 5 looks; older versions read the rope_theta above.
        "rope_parameters": {"rope_type": "default", "rope_theta": language.rope_theta},
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": dtype,
    }


def _write_weights(
    tensors: Mapping[str, TensorEntry], out: Path, advance: Callable[[int], None], shard_bytes: int
) -> None:
    shards = shard(tensors, shard_bytes)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE]
    for name, entries in zip(names, shards, strict=True):
        for size in write_tensors(out / name, entries):
            advance(size)
    if len(shards) > 1:
        weight_map = {key: name for name, entries in zip(names, shards, strict=True) for key in entries}
        total = sum(entry.size for entry in tensors.values())
        _write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _copy_tokenizer(source: Path, out: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    config = source / "tokenizer_config.json"
    if config.is_file():
        kept = {key: value for key, value in Fields.read(config).data.items() if key not in _REMOTE_CODE_KEYS}
        _write_json(out / config.name, kept)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
