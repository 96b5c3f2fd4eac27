"""Split an OpenVLA checkpoint into two bundles: the robot's (edge/) and the GPU host's (cloud/)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from splitvla_cloud.split.backbone_export import export_backbone
from splitvla_cloud.split.checkpoint import TOKENIZER, Checkpoint
from splitvla_cloud.split.encoder_export import export_encoder
from splitvla_cloud.split.fingerprint import json_sha256, tensors_sha256
from splitvla_cloud.split.placement import check_room, check_vacant, placed_whole
from splitvla_cloud.split.progress import Progress, silent
from splitvla_cloud.split.tensor_file import TensorEntry
from splitvla_shared.bundle import file_sha256, write_manifest
from splitvla_shared.spec import ModelSpec

__all__ = ["Checkpoint", "Progress", "split"]

ENCODER = "encoder.onnx"
STATISTICS = "statistics.json"
_FLOAT32_BYTES = 4


def split(checkpoint: Path, out: Path, *, progress: Progress | None = None) -> ModelSpec:
    """Write `out`/edge and `out`/cloud from the checkpoint folder, and return the spec that both carry.

    Everything is checked, every weight included, before the first byte is written; `out` appears whole or not at all.
    Peak memory is the encoder in float32 (3 GB for openvla-7b); the language model passes through one tensor at a time.
    Raises CheckpointError when the source cannot be split, BundleError when `out` is taken or the disk refuses.
    """
    report = progress or silent
    check_vacant(out)
    source = Checkpoint.open(checkpoint)
    check_room(out, _bundle_bytes(source))
    spec = _spec(source, report)
    with placed_whole(out) as whole:
        _write_edge(source, whole / "edge", report)
        _write_cloud(source, whole / "cloud", report)
        _write_manifests(source, spec, whole, report)
    return spec


def _spec(source: Checkpoint, report: Progress) -> ModelSpec:
    """Reads every weight once: hashed, and found to be finite."""
    advance = _counter(report, "check", _size(source.vision_tensors) + _size(source.language_tensors))
    return ModelSpec(
        name=source.name,
        vision_sha256=tensors_sha256(source.vision_tensors, dataclasses.asdict(source.vision), advance),
        language_sha256=tensors_sha256(source.language_tensors, dataclasses.asdict(source.language), advance),
        tokenizer_sha256=file_sha256(source.path / TOKENIZER),
        statistics_sha256=json_sha256(source.statistics),
        patches=source.vision.patches,
        embed_dim=source.vision.embed_dim,
        image_size=source.vision.image_size,
        resize=source.vision.resize,
        action_vocab_size=source.action_vocab_size,
        action_bins=source.action_bins,
        max_action_dims=source.max_action_dims,
        chunk_length=1,
        prompt_template=source.prompt_template,
        suffix_token_id=source.suffix_token_id,
        max_cameras=1,
    ).sealed()


def _write_edge(source: Checkpoint, edge: Path, report: Progress) -> None:
    report("encoder", 0, 1)
    edge.mkdir()
    export_encoder(source.vision, source.vision_tensors, edge / ENCODER)
    (edge / STATISTICS).write_text(json.dumps(source.statistics, indent=2) + "\n", encoding="utf-8")
    report("encoder", 1, 1)


def _write_cloud(source: Checkpoint, cloud: Path, report: Progress) -> None:
    cloud.mkdir()
    advance = _counter(report, "backbone", _size(source.language_tensors))
    export_backbone(source.language, source.language_tensors, source.path, cloud, advance)


def _write_manifests(source: Checkpoint, spec: ModelSpec, whole: Path, report: Progress) -> None:
    report("manifest", 0, 2)
    fill = source.vision.letterbox_fill
    write_manifest(whole / "edge", "edge", spec, {"letterbox_fill": list(fill)} if fill else {})
    report("manifest", 1, 2)
    write_manifest(whole / "cloud", "cloud", spec)
    report("manifest", 2, 2)


def _size(tensors: Mapping[str, TensorEntry]) -> int:
    return sum(entry.size for entry in tensors.values())


def _bundle_bytes(source: Checkpoint) -> int:
    """The encoder is written as float32, the language model as it is stored; the rest is small."""
    encoder = sum(math.prod(entry.shape) for entry in source.vision_tensors.values()) * _FLOAT32_BYTES
    return encoder + _size(source.language_tensors)


def _counter(report: Progress, stage: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(stage, done, total)

    return advance
