"""VisionGeometry from a checkpoint: widths and depths from the tensors' shapes, the rest from its JSON files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from splitvla_cloud.split.fields import Fields
from splitvla_cloud.split.geometry import TowerGeometry, VisionGeometry
from splitvla_cloud.split.tensor_file import TensorEntry
from splitvla_shared.errors import CheckpointError
from splitvla_shared.spec import Resize

ROOT = "vision_backbone."
# timm's models that OpenVLA is made of. Their heads and activation are seen in no tensor, and are the same in all.
_KNOWN_TOWERS = ("vit_large_patch14_reg4_dinov2", "vit_so400m_patch14_siglip_224", "vit_so400m_patch14_siglip_384")
_DEFAULT_HEADS = 16
_RESIZES = {"resize-naive": Resize.NAIVE, "letterbox": Resize.LETTERBOX}

Entries = Mapping[str, TensorEntry]
Rows = Sequence[tuple[float, float, float]]


def read_vision(config: Fields, preprocessor: Fields, entries: Entries) -> VisionGeometry:
    """Raises CheckpointError for a tensor that is missing or a way of preparing images that no graph is made for."""
    fused = config.flag("use_fused_vision_backbone", f"{ROOT}fused_featurizer.pos_embed" in entries)
    names = ("featurizer", "fused_featurizer") if fused else ("featurizer",)
    _check_supported(config, preprocessor)
    means = preprocessor.triples("means", len(names))
    stds = preprocessor.triples("stds", len(names))
    if any(not value > 0 for row in stds for value in row):
        raise CheckpointError(f"{preprocessor.where}: stds {stds} must be above zero")
    towers = tuple(
        _tower(f"{ROOT}{name}.", _heads(config, index), means[index], stds[index], entries)
        for index, name in enumerate(names)
    )
    size = _image_size(config, preprocessor)
    for tower in towers:
        if tower.patches != (size // tower.patch_size) ** 2:
            raise CheckpointError(
                f"{tower.prefix}pos_embed has {tower.patches} rows, but images of {size} px in patches of"
                f" {tower.patch_size} px give {(size // tower.patch_size) ** 2}"
            )
    widths = tuple(_shape(entries, f"projector.fc{number}.weight", 2)[0] for number in range(1, 4 if fused else 3))
    resize, fill = _resize(config, preprocessor, means[-1])
    _check_derived(preprocessor, means, stds, resize)
    return VisionGeometry(towers, widths, size, resize, fill)


def _shape(entries: Entries, name: str, rank: int) -> tuple[int, ...]:
    if name not in entries:
        raise CheckpointError(f"the checkpoint has no tensor {name}; is it an OpenVLA model, and all of it?")
    shape = entries[name].shape
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"{name} has shape {list(shape)}, expected {rank} dimensions above zero")
    return shape


def _tower(
    prefix: str, heads: int, mean: tuple[float, float, float], std: tuple[float, float, float], entries: Entries
) -> TowerGeometry:
    dim, _, patch_size, _ = _shape(entries, f"{prefix}patch_embed.proj.weight", 4)
    if not heads or dim % heads:
        raise CheckpointError(f"{prefix}: width {dim} does not divide into {heads} heads; see timm_model_args")
    stored = [re.match(re.escape(prefix) + r"blocks\.(\d+)\.", name) for name in entries]
    depth = max((int(match[1]) for match in stored if match), default=0)
    if depth < 1:
        raise CheckpointError(f"{prefix}blocks: at least two are needed, because the last one never runs")
    registers = f"{prefix}reg_token"
    return TowerGeometry(
        prefix=prefix,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_dim=_shape(entries, f"{prefix}blocks.0.mlp.fc1.weight", 2)[0],
        patch_size=patch_size,
        patches=_shape(entries, f"{prefix}pos_embed", 3)[1],
        has_cls=f"{prefix}cls_token" in entries,
        registers=_shape(entries, registers, 3)[1] if registers in entries else 0,
        layer_scale=f"{prefix}blocks.0.ls1.scale_factor" in entries,
        mean=mean,
        std=std,
    )


def _heads(config: Fields, index: int) -> int:
    """`timm_model_args` is one object for all towers or a list with one a tower; without it timm's own 16.

    Raises CheckpointError for a timm model that may have others.
    """
    value = config.data.get("timm_model_args")
    if isinstance(value, list):
        value = value[index] if index < len(value) else None
    if value is None:
        for name in config.items("timm_model_ids")[index : index + 1]:
            if str(name).partition(".")[0] not in _KNOWN_TOWERS:
                raise CheckpointError(
                    f"{config.where}: timm_model_ids has {name!r:.80}, whose heads and activation are not known here;"
                    f" supported are {', '.join(_KNOWN_TOWERS)}"
                )
        return _DEFAULT_HEADS
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{config.where}: timm_model_args must be an object, or a list of one a tower")
    return Fields(f"{config.where}: timm_model_args", value).integer("num_heads", _DEFAULT_HEADS)


def _check_supported(config: Fields, preprocessor: Fields) -> None:
    activations = config.items("timm_override_act_layers")
    if any(activation is not None for activation in activations):
        raise CheckpointError(f"{config.where}: timm_override_act_layers {activations} is unsupported; expected nulls")
    interpolations = preprocessor.items("interpolations")
    if any(kind != "bicubic" for kind in interpolations):
        raise CheckpointError(f"{preprocessor.where}: interpolations {interpolations}; only bicubic is supported")


def _check_derived(preprocessor: Fields, means: Rows, stds: Rows, resize: Resize) -> None:
    """The reference saves what it made of its fields as `tvf_*`, and believes these where the file has them.

    Raises CheckpointError where they say something else, because one of the two was edited.
    """
    letterbox = preprocessor.flag("tvf_do_letterbox", resize is Resize.LETTERBOX)
    pairs: list[tuple[str, Any, list[Any]]] = [("tvf_do_letterbox", letterbox, [resize is Resize.LETTERBOX])]
    for row, mean, std in zip(preprocessor.items("tvf_normalize_params"), means, stds, strict=False):
        for name, values in (("mean", mean), ("std", std)):
            stated = row.get(name) if isinstance(row, Mapping) else row
            rounded = np.array(values, np.float32).tolist()
            pairs.append((f"tvf_normalize_params {name}", stated, [list(values), rounded]))
    for name, stated, wanted in pairs:
        if stated not in wanted:
            raise CheckpointError(
                f"{preprocessor.where}: {name} is {stated!r:.80}, the other fields say {wanted[0]}; take the file"
                " that the weights came with"
            )


def _image_size(config: Fields, preprocessor: Fields) -> int:
    """The one side length that every tower takes."""
    sizes = preprocessor.items("input_sizes") or [[3, side, side] for side in config.items("image_sizes")]
    square = all(isinstance(size, list) and len(size) == 3 and size[0] == 3 and size[1] == size[2] for size in sizes)
    if not square or not sizes or any(size != sizes[0] for size in sizes) or not isinstance(sizes[0][1], int):
        raise CheckpointError(f"{preprocessor.where}: input_sizes {sizes}; expected one square [3, side, side] for all")
    side: int = sizes[0][1]
    return side


def _resize(
    config: Fields, preprocessor: Fields, mean: tuple[float, float, float]
) -> tuple[Resize, tuple[int, int, int] | None]:
    """How a frame becomes a square; letterbox pads with the mean colour of the last tower, as the reference does."""
    strategy = preprocessor.text("image_resize_strategy", config.text("image_resize_strategy", "resize-naive"))
    if strategy not in _RESIZES:
        raise CheckpointError(
            f"{preprocessor.where}: image_resize_strategy {strategy!r}; supported are {', '.join(_RESIZES)}"
        )
    if _RESIZES[strategy] is Resize.NAIVE:
        return Resize.NAIVE, None
    return Resize.LETTERBOX, (int(255 * mean[0]), int(255 * mean[1]), int(255 * mean[2]))
