"""The GPU host's half as a plain LlamaForCausalLM folder that transformers, and any engine that reads one, opens."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from splitvla_cloud.precision import Quantised, quantization_config
from splitvla_cloud.split.fields import Fields
from splitvla_cloud.split.geometry import LanguageGeometry
from splitvla_cloud.split.quantised import write_quantised
from splitvla_cloud.split.tensor_file import StoredTensor, read_header, shard, write_tensors
from splitvla_cloud.split.weights import INDEX, shard_names

SHARD_BYTES = 4_000_000_000
_TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json")
# They name remote code of the unsplit model, which the plain folder has no use for.
_REMOTE_CODE_KEYS = ("auto_map", "processor_class")


def export_backbone(
    language: LanguageGeometry,
    tensors: Mapping[str, StoredTensor],
    source: Path,
    out: Path,
    advance: Callable[[int], None],
    shard_bytes: int = SHARD_BYTES,
    precision: Quantised | None = None,
) -> None:
    """Write config, weights and the tokenizer of `source` into the folder `out`.

    Weights keep the type they are stored in; with `precision` the linear layers are quantised and the rest is bfloat16.
    Holds one tensor in memory at a time. `advance` gets the bytes of each tensor of the source once it is written.
    """
    dtype = "bfloat16" if precision else _TORCH_DTYPES[tensors["model.embed_tokens.weight"].dtype]
    quantised = {"quantization_config": quantization_config(precision).to_dict()} if precision else {}
    _write_json(out / "config.json", _llama_config(language, dtype) | quantised)
    ids = {"bos_token_id": language.bos_token_id, "eos_token_id": language.eos_token_id}
    _write_json(out / "generation_config.json", ids | {"pad_token_id": language.pad_token_id, "do_sample": False})
    if precision:
        files = write_quantised(tensors, out, precision, advance)
    else:
        files = _write_plain(tensors, out, advance, shard_bytes)
    if len(files) > 1:
        _write_index(files, out)
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


def _write_plain(
    tensors: Mapping[str, StoredTensor], out: Path, advance: Callable[[int], None], shard_bytes: int
) -> dict[str, list[str]]:
    """The names of the files, and of the tensors in each."""
    shards = shard(tensors, shard_bytes)
    names = shard_names(len(shards))
    for name, entries in zip(names, shards, strict=True):
        for size in write_tensors(out / name, entries):
            advance(size)
    return {name: list(entries) for name, entries in zip(names, shards, strict=True)}


def _write_index(files: Mapping[str, list[str]], out: Path) -> None:
    total = sum(entry.size for name in files for entry in read_header(out / name).values())
    weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
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
