"""Split an OpenVLA checkpoint into two bundles: the robot's (edge/) and the GPU host's (cloud/)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitvla_cloud.precision import Quantised
from splitvla_cloud.settings import PRECISION_KEY
from splitvla_cloud.split.backbone_export import export_backbone
from splitvla_cloud.split.checkpoint import TOKENIZER, Checkpoint, check_tokenizer
from splitvla_cloud.split.encoder_export import export_encoder
from splitvla_cloud.split.encoder_variants import (
    FP32_ONLY,
    EncoderOptions,
    variant_bytes,
    variant_frames,
    write_variants,
)
from splitvla_cloud.split.fingerprint import json_sha256, tensors_sha256
from splitvla_cloud.split.placement import check_room, check_vacant, placed_whole
from splitvla_cloud.split.probe import write_probes
from splitvla_cloud.split.progress import Progress, counter, silent
from splitvla_cloud.split.sensitivity import write_sensitivity
from splitvla_cloud.split.tensor_file import StoredTensor
from splitvla_shared.bundle import Bundle, file_sha256, write_manifest
from splitvla_shared.image_pipelines import ImagePipeline
from splitvla_shared.spec import ModelSpec

__all__ = ["Checkpoint", "Progress", "split"]

ENCODER = "encoder.onnx"
STATISTICS = "statistics.json"
_FLOAT32_BYTES = 4


def split(
    checkpoint: Path,
    out: Path,
    *,
    adapter: Path | None = None,
    base_statistics: bool = False,
    precision: Quantised | None = None,
    image_pipeline: ImagePipeline = ImagePipeline.HF,
    encoders: EncoderOptions = FP32_ONLY,
    progress: Progress | None = None,
) -> ModelSpec:
    """Write `out`/edge and `out`/cloud from the checkpoint folder, and return the spec that both carry.

    adapter: a PEFT LoRA folder that is merged into the weights on their way. base_statistics: its actions are scaled by
    the checkpoint's statistics, not by those of its training run. precision: "int8" or "nf4" to store the
    backbone quantised, so that the server starts in seconds and serves that precision alone; None stores it as it is.
    image_pipeline: what the robot does to a frame unless told otherwise; the checkpoint does not say it.
    encoders: reduced ones to write beside the exact one, for slow robots, and how they are judged.
    Everything but how good a reduced encoder is gets checked, every weight included, before the first byte is written;
    `out` appears whole or not at all.
    Peak memory is a small multiple of the largest tensor: both halves pass through one tensor at a time.
    Raises CheckpointError or ConfigError when the source cannot be split, ObservationError for calibration frames that
    can't be read, BundleError when `out` is taken, the disk refuses, or a reduced encoder is poor.
    """
    report = progress or silent
    check_vacant(out)
    source = Checkpoint.open(checkpoint, adapter, base_statistics=base_statistics)
    check_tokenizer(source.path)
    frames = variant_frames(encoders, image_pipeline, source.vision)
    check_room(out, _bundle_bytes(source) + variant_bytes(source, encoders))
    spec = _spec(source, report)
    with placed_whole(out) as whole:
        _write_edge(source, whole / "edge", report)
        _write_cloud(source, precision, whole / "cloud", report)
        write_probes(source, spec, whole / "edge", whole / "cloud", report)
        write_sensitivity(source.language_tensors, whole / "edge")
        cloud = Bundle(whole / "cloud", "cloud", spec, {PRECISION_KEY: precision} if precision else {})
        variants = write_variants(source, whole / "edge", cloud, encoders, frames, report)
        extra = {"image_pipeline": image_pipeline.value} | variants
        _write_manifests(source, extra, cloud.extra, spec, whole, report)
    return spec


def _spec(source: Checkpoint, report: Progress) -> ModelSpec:
    """Reads every weight once: hashed, and found to be finite."""
    advance = counter(report, "check", _size(source.vision_tensors) + _size(source.language_tensors))
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
    edge.mkdir()
    export_encoder(source.vision, source.vision_tensors, edge / ENCODER, report=report)
    (edge / STATISTICS).write_text(json.dumps(source.statistics, indent=2) + "\n", encoding="utf-8")


def _write_cloud(source: Checkpoint, precision: Quantised | None, cloud: Path, report: Progress) -> None:
    cloud.mkdir()
    advance = counter(report, "backbone", _size(source.language_tensors))
    export_backbone(source.language, source.language_tensors, source.path, cloud, advance, precision=precision)


def _write_manifests(
    source: Checkpoint,
    edge: dict[str, Any],
    cloud: Mapping[str, Any],
    spec: ModelSpec,
    whole: Path,
    report: Progress,
) -> None:
    advance = counter(report, "manifest", sum(file.stat().st_size for file in whole.rglob("*") if file.is_file()))
    fill = source.vision.letterbox_fill
    write_manifest(whole / "edge", "edge", spec, edge | ({"letterbox_fill": list(fill)} if fill else {}), advance)
    write_manifest(whole / "cloud", "cloud", spec, cloud, advance)


def _size(tensors: Mapping[str, StoredTensor]) -> int:
    return sum(entry.size for entry in tensors.values())


def _bundle_bytes(source: Checkpoint) -> int:
    """The encoder is written as float32, the language model as it is stored at most; the rest is small."""
    encoder = sum(math.prod(entry.shape) for entry in source.vision_tensors.values()) * _FLOAT32_BYTES
    return encoder + _size(source.language_tensors)
