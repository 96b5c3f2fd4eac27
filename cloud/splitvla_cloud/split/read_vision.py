"""VisionGeometry from a checkpoint: widths and depths from the tensors' shapes, the rest from its JSON files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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
_BICUBIC = 3  # PIL's number, which torchvision takes

Entries = Mapping[str, TensorEntry]
Triple = tuple[float, float, float]


def read_vision(config: Fields, preprocessor: Fields, entries: Entries) -> VisionGeometry:
    """Raises CheckpointError for a tensor that is missing or a way of preparing images that no graph is made for."""
    fused = config.flag("use_fused_vision_backbone", f"{ROOT}fused_featurizer.pos_embed" in entries)
    names = ("featurizer", "fused_featurizer") if fused else ("featurizer",)
    _check_supported(config, preprocessor)
    means, stds = _normalization(preprocessor, len(names))
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
    resize = _resize(config, preprocessor)
    _check_derived(preprocessor, resize, size)
    fill = _fill(preprocessor, len(names)) if resize is Resize.LETTERBOX else None
    return VisionGeometry(towers, widths, size, resize, fill)


def _shape(entries: Entries, name: str, rank: int) -> tuple[int, ...]:
    if name not in entries:
        raise CheckpointError(f"the checkpoint has no tensor {name}; is it an OpenVLA model, and all of it?")
    shape = entries[name].shape
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"{name} has shape {list(shape)}, expected {rank} dimensions above zero")
    return shape


def _tower(prefix: str, heads: int, mean: Triple, std: Triple, entries: Entries) -> TowerGeometry:
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


def _normalization(preprocessor: Fields, towers: int) -> tuple[list[Triple], list[Triple]]:
    """Means and standard deviations, a row a tower: of `tvf_normalize_params` where the file has it.

    The reference computes with these, whatever `means` and `stds` say (processing_prismatic.py of openvla/openvla). Its
    converter filled them in under bfloat16, so that openvla-7b's file has 0.484375 beside a mean of 0.485.
    """
    rows = preprocessor.items("tvf_normalize_params")
    if not rows:
        return preprocessor.triples("means", towers), preprocessor.triples("stds", towers)
    columns = {name: [row.get(name) if isinstance(row, Mapping) else row for row in rows] for name in ("mean", "std")}
    derived = Fields(f"{preprocessor.where}: tvf_normalize_params", columns)
    return derived.triples("mean", towers), derived.triples("std", towers)


def _check_derived(preprocessor: Fields, resize: Resize, side: int) -> None:
    """What else the reference has made of its fields and saved as `tvf_*`, it believes before the fields themselves.

    Raises CheckpointError where the two differ, because one of them was edited.
    """
    letterbox = resize is Resize.LETTERBOX
    naive: list[Any] = [[side, side]]
    known: list[tuple[str, str, list[Any]]] = [
        ("tvf_resize_params", "size", [*naive, side] if letterbox else naive),  # one side says it all of a square
        ("tvf_resize_params", "interpolation", [_BICUBIC]),
        ("tvf_crop_params", "output_size", [*naive, side]),
    ]
    stated = [
        (f"{name} {key}", row.get(key) if isinstance(row, Mapping) else row, wanted)
        for name, key, wanted in known
        for row in preprocessor.items(name)
    ]
    boxed = preprocessor.flag("tvf_do_letterbox", letterbox)
    for name, value, wanted in [("tvf_do_letterbox", boxed, [letterbox]), *stated]:
        if value not in wanted:
            raise CheckpointError(
                f"{preprocessor.where}: {name} is {value!r:.80}, the other fields say {wanted[0]}; take the file that"
                " the weights came with"
            )


def _image_size(config: Fields, preprocessor: Fields) -> int:
    """The one side length that every tower takes."""
    sizes = preprocessor.items("input_sizes") or [[3, side, side] for side in config.items("image_sizes")]
    square = all(isinstance(size, list) and len(size) == 3 and size[0] == 3 and size[1] == size[2] for size in sizes)
    if not square or not sizes or any(size != sizes[0] for size in sizes) or not isinstance(sizes[0][1], int):
        raise CheckpointError(f"{preprocessor.where}: input_sizes {sizes}; expected one square [3, side, side] for all")
    side: int = sizes[0][1]
    return side


def _resize(config: Fields, preprocessor: Fields) -> Resize:
    """How a frame becomes a square."""
    strategy = preprocessor.text("image_resize_strategy", config.text("image_resize_strategy", "resize-naive"))
    if strategy not in _RESIZES:
        raise CheckpointError(
            f"{preprocessor.where}: image_resize_strategy {strategy!r}; supported are {', '.join(_RESIZES)}"
        )
    return _RESIZES[strategy]


def _fill(preprocessor: Fields, towers: int) -> tuple[int, int, int]:
    """What letterbox pads with: `tvf_letterbox_fill`, or what the reference makes it of, the last tower's mean."""
    if preprocessor.items("tvf_letterbox_fill"):
        colour = Fields(preprocessor.where, {"tvf_letterbox_fill": [preprocessor.items("tvf_letterbox_fill")]})
        fill = colour.triples("tvf_letterbox_fill", 1)[0]
    else:
        red, green, blue = preprocessor.triples("means", towers)[-1]
        fill = (255 * red, 255 * green, 255 * blue)
    if not all(0 <= value <= 255 for value in fill):
        raise CheckpointError(f"{preprocessor.where}: letterbox pads with {fill}; expected three values of 0 to 255")
    return int(fill[0]), int(fill[1]), int(fill[2])
