"""Which tensors a checkpoint folder holds, found from headers alone: one file, or several with an index."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from splitvla_cloud.split.fields import Fields
from splitvla_cloud.split.geometry import Shape
from splitvla_cloud.split.tensor_file import DTYPES, TensorEntry, read_header
from splitvla_shared.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OFT_PARTS = ("action_head--*", "proprio_projector--*", "noisy_action_projector--*", "vision_backbone--*")
_CODE = "modeling_prismatic.py"
_OFT_NAMES = ("NUM_ACTIONS_CHUNK", "_regression_or_discrete_prediction")
# What Prismatic's own training code writes: in checkpoints/ of a run, or taken out of there.
_PRISMATIC = ("step-*.pt", "latest-checkpoint.pt")
_UNQUANTISED = "take the checkpoint before quantizing"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Stored by the reference and never read by its forward pass: the pool, the last norm, buffers of old versions.
_NEVER_READ = re.compile(
    r"vision_backbone\.(fused_)?featurizer\.(attn_pool\.|norm\.|mask_token$)|language_model\..*rotary_emb\.inv_freq$"
)


def shard_names(count: int) -> list[str]:
    """The file names of a checkpoint in `count` files, as transformers chooses them."""
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def check_plain(*folders: Path) -> None:
    """Of a checkpoint and its adapter. Raises CheckpointError where the answer is no sequence of action tokens.

    OpenVLA-OFT saves its parts beside weights that look like any OpenVLA's, and reads an answer all at once, without a
    causal mask (openvla-oft: vla-scripts/finetune.py, experiments/robot/openvla_utils.py): decoded token by token they
    give actions that mean nothing. Its discrete variant has no such part; the folder's model code tells it then.
    """
    parts = sorted(file for folder in folders for pattern in _OFT_PARTS for file in folder.glob(pattern))
    codes = [folder / _CODE for folder in folders if _is_oft_code(folder / _CODE)]
    if not parts and not codes:
        return
    found = (parts or codes)[0]
    only_code = "" if parts else "; or put back the file that your weights came with, where that alone was replaced"
    raise CheckpointError(
        f"{found.parent} holds an OpenVLA-OFT fine-tune ({found.name}): its actions come from parallel"
        f" decoding, which is not supported; split a checkpoint that decodes token by token{only_code}"
    )


def check_converted(path: Path) -> None:
    """Raises CheckpointError for a checkpoint in Prismatic's own layout, from which openvla's script makes this one."""
    if (path / SINGLE).is_file() or (path / INDEX).is_file():
        return
    places = (path, path / "checkpoints")
    found = next((file for place in places for name in _PRISMATIC for file in sorted(place.glob(name))), None)
    if found is not None:
        raise CheckpointError(
            f"{path} is a Prismatic checkpoint ({found.relative_to(path)}): convert it with openvla's"
            " vla-scripts/extern/convert_openvla_weights_to_hf.py and split what that writes"
        )


def check_unquantised(config: Fields) -> None:
    """Raises CheckpointError for weights that are stored quantised, whatever by."""
    if config.data.get("quantization_config") is not None:
        method = config.table("quantization_config").text("quant_method", "an unnamed method")
        raise CheckpointError(
            f"{config.where}: the weights are quantised by {method}, which can't be split; {_UNQUANTISED}, and quantise"
            " what is split: `split --precision` or `serve --precision`"
        )


def find_tensors(path: Path) -> dict[str, TensorEntry]:
    """Every tensor in the folder. Raises CheckpointError for missing or damaged files, and for pickles."""
    if (path / SINGLE).is_file():
        return read_header(path / SINGLE)
    if (path / INDEX).is_file():
        return _read_sharded(path)
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{path} holds {pickles[0]} and no safetensors: opening a pickle runs whatever code is in it; load it"
            " where you trust it and save it with model.save_pretrained(DIR, safe_serialization=True)"
        )
    raise CheckpointError(f"{path} holds neither {SINGLE} nor {INDEX}; is the download complete?")


def _read_sharded(path: Path) -> dict[str, TensorEntry]:
    index = Fields.read(path / INDEX).table("weight_map")
    shards: dict[str, dict[str, TensorEntry]] = {}
    entries = {}
    for name, shard in index.data.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index.where}: {name} is in {shard!r}, which is no file name of this folder")
        if shard not in shards:
            if not (path / shard).is_file():
                raise CheckpointError(f"{path / shard} is missing ({INDEX} names it); download it again")
            shards[shard] = read_header(path / shard)
        if name not in shards[shard]:
            raise CheckpointError(f"{path / shard} has no tensor {name}, which {INDEX} places there; download it again")
        entries[name] = shards[shard][name]
    # transformers loads whatever lies in the files: with one of these the model would be another one than is split.
    for shard, found in shards.items():
        for name in found:
            if index.data.get(name) != shard:
                raise CheckpointError(
                    f"{path / shard} has a tensor {name}, which {INDEX} does not place there; download both again"
                )
    return entries


def _is_oft_code(file: Path) -> bool:
    text = file.read_text(encoding="utf-8", errors="ignore") if file.is_file() else ""
    return any(name in text for name in _OFT_NAMES)


def check_required(required: Mapping[str, Shape], entries: Mapping[str, TensorEntry]) -> None:
    """Raises CheckpointError naming the first tensor that is missing, misshapen or of a type that cannot be split."""
    for name, shape in required.items():
        entry = entries.get(name)
        if entry is None:
            raise CheckpointError(f"the checkpoint has no tensor {name}, expected {list(shape)}; is it complete?")
        if entry.dtype not in DTYPES:
            raise CheckpointError(f"{name} is {entry.dtype}; only {', '.join(DTYPES)} can be split: {_UNQUANTISED}")
        if entry.shape != shape:
            raise CheckpointError(
                f"{name} has shape {list(entry.shape)}, expected {list(shape)} as the rest of the checkpoint says"
            )


def never_read(name: str, last_blocks: tuple[str, ...]) -> bool:
    """Whether a tensor of this name is stored and no forward pass looks at it.

    last_blocks: prefixes of the towers' last blocks, which never run.
    """
    return name.startswith(last_blocks) or _NEVER_READ.match(name) is not None


def check_nothing_else(required: Mapping[str, Shape], last_blocks: tuple[str, ...], names: Iterable[str]) -> None:
    """Raises CheckpointError for a tensor that the forward pass would have to read and this layout does not know.

    Dropping one in silence (a LoRA adapter, a FiLM layer, a bias) would leave a model that acts differently.
    last_blocks: see `never_read`.
    """
    for name in names:
        if name in required or never_read(name, last_blocks):
            continue
        hint = (
            "merge the adapter into the model first, or split the base with --adapter DIR"
            if "lora_" in name
            else "only plain OpenVLA models can be split"
        )
        raise CheckpointError(f"unknown tensor {name} in the checkpoint; {hint}")
