"""A PEFT LoRA adapter folder: read, checked against its base, and laid over the base's tensors.

Rules of this file: whatever would make the merged model differ from the one that was trained is refused by name, and
the way out of every refusal is peft's own `merge_and_unload`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from splitvla_cloud.split.fields import Fields
from splitvla_cloud.split.lora import MergedTensor
from splitvla_cloud.split.tensor_file import DTYPES, StoredTensor, TensorEntry, read_header
from splitvla_shared.errors import CheckpointError

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
STATISTICS = "dataset_statistics.json"
_ROOT = "base_model.model."
_DOWN, _UP, _FROZEN = ".lora_A.weight", ".lora_B.weight", ".base_layer.weight"
_MERGE_FIRST = (
    "merge it with peft's merge_and_unload, save the result, copy the preprocessor_config.json and tokenizer.json"
    f" of the base and the {STATISTICS} of the run beside it, and split that"
)

# Options of peft that change what a forward pass computes, and the values that change nothing. Absent or null is off.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "use_qalora": (False,),
    "use_bdlora": (False,),
    "modules_to_save": ([],),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "layer_replication": ([],),
    "target_parameters": ([],),
    "trainable_token_indices": ([], {}),
    "alora_invocation_tokens": ([],),
    "arrow_config": (),
    # The others take a part out of the base's weights, and the adapter fits only what is left.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that was read but not yet compared with a base. updates: base tensor -> its A and B.

    frozen: copies of base weights that peft saves along; they tell which base the adapter was trained on.
    folder: where the adapter itself lies, in `path` or below it.
    """

    path: Path
    folder: Path
    base_name: str
    scale: float
    updates: Mapping[str, tuple[TensorEntry, TensorEntry]]
    frozen: Mapping[str, TensorEntry]

    @classmethod
    def open(cls, path: Path) -> Adapter:
        """Read configuration and headers of an adapter folder, or of a run folder with one adapter in it.

        Raises CheckpointError naming the file, option or tensor.
        """
        folder = _adapter_folder(path)
        config = Fields.read(folder / CONFIG)
        for option, neutral in _NEUTRAL.items():
            value = config.data.get(option)
            if value is not None and value not in neutral:
                raise CheckpointError(
                    f"{config.where}: {option} is {value!r:.60}, which is unsupported; {_MERGE_FIRST}"
                )
        rank, alpha = config.integer("r"), config.real("lora_alpha")
        if not rank:
            raise CheckpointError(f"{config.where}: r is 0, expected at least 1")
        entries = _weights(folder)
        frozen = {_module(name, _FROZEN): entry for name, entry in entries.items() if name.endswith(_FROZEN)}
        return cls(
            path=path,
            folder=folder,
            base_name=config.text("base_model_name_or_path", "unknown"),
            scale=alpha / (math.sqrt(rank) if config.flag("use_rslora", False) else rank),
            updates=_pairs(folder / WEIGHTS, entries, rank),
            frozen=frozen,
        )

    def statistics(self, base: Path) -> Path:
        """The run's dataset_statistics.json: beside the adapter, or in the folder above it unless that is the base.

        Raises CheckpointError where there is none: finetune.py writes the adapter into one folder and the statistics
        into another, and the base's would move the arm at the scale of another dataset.
        """
        for place in dict.fromkeys((self.folder, self.path, self.folder.resolve().parent)):
            if (place / STATISTICS).is_file() and place.resolve() != base.resolve():
                return place / STATISTICS
        raise CheckpointError(
            f"{self.path} has no {STATISTICS}, which says how far the arm moves: copy {STATISTICS} from the training"
            " run's folder into it, or keep those of the base checkpoint with --base-statistics"
        )

    def merge(self, base: Mapping[str, TensorEntry], dead: Callable[[str], bool]) -> dict[str, StoredTensor]:
        """`base` with every adapted tensor replaced. dead: whether no forward pass reads a tensor of this name.

        Raises CheckpointError when a tensor has no counterpart in the base, or another shape, or when the frozen copy
        of a weight is not the base's: the adapter then belongs to another checkpoint. Reads the frozen copies.
        """
        merged: dict[str, StoredTensor] = dict(base)
        for name, (down, up) in self.updates.items():
            if dead(name):
                continue
            merged[name] = MergedTensor(self._counterpart(name, down, base), down, up, self.scale)
            self._check_shapes(base[name], down, up)
        for name, copy in self.frozen.items():
            if not dead(name) and not _same_weight(self._counterpart(name, copy, base), copy):
                raise CheckpointError(
                    f"{copy.file}: {copy.name} is not the {name} of the checkpoint: the adapter was trained on another"
                    f" base ({self.base_name}); give that one"
                )
        return merged

    def _counterpart(self, name: str, entry: TensorEntry, base: Mapping[str, TensorEntry]) -> TensorEntry:
        if name not in base:
            raise CheckpointError(
                f"{entry.file}: {entry.name} adapts {name}, which the checkpoint does not have; the adapter was"
                f" trained on {self.base_name}"
            )
        return base[name]

    def _check_shapes(self, base: TensorEntry, down: TensorEntry, up: TensorEntry) -> None:
        rows, *columns = base.shape
        rank, kernel = down.shape[0], len(base.shape) - 2
        for entry, expected in ((down, (rank, *columns)), (up, (rows, rank, *(1,) * kernel))):
            if entry.shape != expected or len(base.shape) < 2:
                raise CheckpointError(
                    f"{entry.file}: {entry.name} has shape {list(entry.shape)}, expected {list(expected)} for the"
                    f" checkpoint's {base.name} {list(base.shape)}; the adapter was trained on {self.base_name}"
                )


def _adapter_folder(path: Path) -> Path:
    """`path`, or the one folder below it that holds an adapter, which is how fine-tuning runs are laid out."""
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder; expected a PEFT adapter with {CONFIG}")
    if (path / CONFIG).is_file():
        return path
    found = sorted(file.parent for file in path.glob(f"*/{CONFIG}"))
    if len(found) != 1:
        named = f"{len(found)} adapters ({', '.join(folder.name for folder in found[:4])})" if found else f"no {CONFIG}"
        raise CheckpointError(f"{path} holds {named}; give the folder of one PEFT adapter")
    return found[0]


def _weights(folder: Path) -> dict[str, TensorEntry]:
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if (folder / PICKLE).is_file():
        raise CheckpointError(
            f"{folder / PICKLE}: opening a pickle runs whatever code is in it; load it where you trust it and save it"
            " with model.save_pretrained(DIR, safe_serialization=True)"
        )
    raise CheckpointError(f"{folder / WEIGHTS} is missing; is the download complete?")


def _module(name: str, ending: str) -> str:
    """The base's tensor that an adapter's tensor stands for."""
    return name.removeprefix(_ROOT).removesuffix(ending) + ".weight"


def _pairs(file: Path, entries: Mapping[str, TensorEntry], rank: int) -> dict[str, tuple[TensorEntry, TensorEntry]]:
    """A and B of each adapted tensor. Raises CheckpointError for half a pair and for tensors of another method."""
    downs = {_module(name, _DOWN): entry for name, entry in entries.items() if name.endswith(_DOWN)}
    ups = {_module(name, _UP): entry for name, entry in entries.items() if name.endswith(_UP)}
    for name, entry in entries.items():
        if not name.startswith(_ROOT) or not name.endswith((_DOWN, _UP, _FROZEN)):
            raise CheckpointError(f"{file}: unknown tensor {name}; only plain LoRA is supported: {_MERGE_FIRST}")
        if entry.dtype not in DTYPES:
            raise CheckpointError(f"{file}: {name} is {entry.dtype}; only {', '.join(DTYPES)} can be merged")
    if not downs:
        raise CheckpointError(f"{file} holds no lora_A tensor; is it a LoRA adapter?")
    for name in sorted(downs.keys() ^ ups.keys()):
        raise CheckpointError(f"{file}: {name} has only one of lora_A and lora_B; the adapter is not whole")
    for entry in downs.values():
        if entry.shape[:1] != (rank,):
            raise CheckpointError(
                f"{file}: {entry.name} has shape {list(entry.shape)}, but {CONFIG} says r = {rank}; do the two files"
                " belong together?"
            )
    return {name: (downs[name], ups[name]) for name in downs}


def _same_weight(base: TensorEntry, copy: TensorEntry) -> bool:
    """Equal in the coarser of the two types: training may have loaded the base in another one."""
    if base.shape != copy.shape:
        return False
    mine, theirs = base.read(), copy.read()
    return torch.equal(mine.to(theirs.dtype), theirs) or torch.equal(mine, theirs.to(mine.dtype))
