"""An OpenVLA checkpoint on disk (Hugging Face layout, safetensors), checked before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitvla_cloud.prompt import load_tokenizer
from splitvla_cloud.split.adapter import STATISTICS, Adapter
from splitvla_cloud.split.fields import Fields
from splitvla_cloud.split.geometry import LanguageGeometry, VisionGeometry, language_shapes, vision_shapes
from splitvla_cloud.split.prompt import prompt_template, suffix_token_id
from splitvla_cloud.split.read_language import read_language
from splitvla_cloud.split.read_vision import read_vision
from splitvla_cloud.split.tensor_file import StoredTensor
from splitvla_cloud.split.weights import (
    check_converted,
    check_nothing_else,
    check_plain,
    check_required,
    check_unquantised,
    find_tensors,
    never_read,
)
from splitvla_shared.actions import parse_statistics
from splitvla_shared.errors import BundleError, CheckpointError, ConfigError

LANGUAGE_ROOT = "language_model."
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What `split` needs to know. No weight is in memory: `vision` and `language` tensors are read one at a time.

    vision_tensors are under the checkpoint's own names, language_tensors under those of LlamaForCausalLM; both hold
    only what a forward pass reads. statistics are `norm_stats`, or dataset_statistics.json where the folder has one.
    With an adapter, tensors read as merged and the statistics are its own. action_vocab_size: the id that action tokens
    count down from.
    """

    path: Path
    name: str
    vision: VisionGeometry
    language: LanguageGeometry
    vision_tensors: Mapping[str, StoredTensor]
    language_tensors: Mapping[str, StoredTensor]
    statistics: Mapping[str, Any]
    max_action_dims: int
    action_vocab_size: int
    action_bins: int
    prompt_template: str
    suffix_token_id: int

    @classmethod
    def open(cls, path: Path, adapter: Path | None = None, *, base_statistics: bool = False) -> Checkpoint:
        """Read all JSON files and safetensors headers; adapter: a PEFT LoRA folder to be merged into the weights.

        base_statistics: un-normalise the adapter's actions by the checkpoint's statistics, not by its own.
        Raises CheckpointError naming the file, field or tensor when the folder is not a whole OpenVLA checkpoint, or
        when the adapter is not one of this checkpoint or has no statistics; ConfigError for base_statistics alone.
        """
        if base_statistics and adapter is None:
            raise ConfigError("--base-statistics is about an adapter; give --adapter DIR too, or leave it out")
        if not path.is_dir():
            raise CheckpointError(f"{path} is no folder; expected a downloaded Hugging Face checkpoint")
        check_converted(path)
        check_plain(path, *([adapter, adapter.resolve().parent] if adapter is not None else []))
        name = path.resolve().name
        config = Fields.read(path / "config.json")
        check_unquantised(config)
        entries = find_tensors(path)
        vision = read_vision(config, _preprocessor(path), entries)
        language = read_language(config)
        action_vocab_size, bins = _action_vocabulary(config, language)
        language_names = {LANGUAGE_ROOT + name: shape for name, shape in language_shapes(language).items()}
        required = vision_shapes(vision) | language_names
        check_required(required, entries)
        last_blocks = tuple(f"{tower.prefix}blocks.{tower.depth}." for tower in vision.towers)
        check_nothing_else(required, last_blocks, entries)
        if vision.embed_dim != language.hidden_size:
            raise CheckpointError(
                f"the projector gives {vision.embed_dim} numbers a patch, the backbone takes {language.hidden_size}"
            )
        lora = Adapter.open(adapter) if adapter is not None else None
        tensors = lora.merge(entries, lambda name: never_read(name, last_blocks)) if lora is not None else entries
        statistics = _statistics(path, config, None if base_statistics else lora)
        return cls(
            path=path,
            name=name if adapter is None else f"{name}+{adapter.resolve().name}",
            vision=vision,
            language=language,
            vision_tensors={name: tensors[name] for name in vision_shapes(vision)},
            language_tensors={name.removeprefix(LANGUAGE_ROOT): tensors[name] for name in language_names},
            statistics=statistics,
            max_action_dims=_longest_action(statistics),
            action_vocab_size=action_vocab_size,
            action_bins=bins,
            prompt_template=prompt_template(config, name, len(vision.towers)),
            suffix_token_id=suffix_token_id(_tokenizer(path, language.vocab_size), action_vocab_size),
        )


def _preprocessor(path: Path) -> Fields:
    """preprocessor_config.json, or where transformers 5 saved it: in processor_config.json, with the rest."""
    file, newer = path / "preprocessor_config.json", path / "processor_config.json"
    if not file.is_file() and newer.is_file():
        processor = Fields.read(newer)
        if "image_processor" in processor.data:
            return processor.table("image_processor")
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; copy it and {TOKENIZER} from the base checkpoint")
    return Fields.read(file)


def _action_vocabulary(config: Fields, language: LanguageGeometry) -> tuple[int, int]:
    """The id that action tokens count down from, and their number."""
    padding, bins = config.integer("pad_to_multiple_of", 64), config.integer("n_action_bins", 256)
    size = language.vocab_size - padding
    if bins < 2 or size < bins:
        raise CheckpointError(
            f"{config.where}: vocab_size {language.vocab_size} less pad_to_multiple_of {padding} leaves no room for"
            f" {bins} action tokens"
        )
    return size, bins


def _statistics(path: Path, config: Fields, lora: Adapter | None) -> Mapping[str, Any]:
    """A fine-tune keeps its base's norm_stats in config.json; its own are in dataset_statistics.json, and win."""
    file = path / STATISTICS if lora is None else lora.statistics(path)
    return Fields.read(file).data if file.is_file() else config.table("norm_stats", {}).data


def _longest_action(statistics: Mapping[str, Any]) -> int:
    try:
        return max(entry.dims for entry in parse_statistics(statistics).values())
    except BundleError as error:
        raise CheckpointError(str(error)) from error


def _tokenizer(path: Path, vocab_size: int) -> Fields:
    if not (path / TOKENIZER).is_file():
        raise CheckpointError(
            f"{path / TOKENIZER} is missing; make it with AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    tokenizer = Fields.read(path / TOKENIZER)
    ids = tokenizer.table("model").table("vocab").data.values()
    largest = max((number for number in ids if isinstance(number, int)), default=-1)
    if not 0 <= largest < vocab_size:
        raise CheckpointError(f"{tokenizer.where}: token ids reach {largest}, the language model has {vocab_size}")
    return tokenizer


def check_tokenizer(path: Path) -> None:
    """Raises CheckpointError for a tokenizer.json that gives no prompt: what `serve` would find at its start."""
    try:
        load_tokenizer(path)
    except BundleError as error:
        raise CheckpointError(str(error)) from error
