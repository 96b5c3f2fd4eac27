"""The reduced encoders beside encoder.onnx: written, run, compared with float32, and refused when poor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splitvla_cloud.precision import Precision
from splitvla_cloud.settings import PRECISION_KEY
from splitvla_cloud.split.calibration_frames import calibration_frames
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.split.encoder_parity import (
    DEFAULT_FLOOR,
    Floor,
    TokenJudge,
    check_floor,
    compare,
    run_graph,
    too_large_to_run,
)
from splitvla_cloud.split.geometry import VisionGeometry
from splitvla_cloud.split.progress import Progress, counter
from splitvla_cloud.split.reduced_graph import write_float16, write_int8
from splitvla_cloud.split.smoothing import Calibration, calibrate, rescaled
from splitvla_shared.bundle import Bundle
from splitvla_shared.encoders import ENCODER_FILES, FP16, FP32, INT8
from splitvla_shared.image_pipelines import ImagePipeline
from splitvla_shared.nouns import FloatArray, Image
from splitvla_shared.preprocess.image_pipelines import build_pipeline
from splitvla_shared.preprocess.images import GRAY

_WRITERS = {FP16: write_float16, INT8: write_int8}
# Bytes that a stored weight takes, for the check of free disk space.
_WEIGHT_BYTES = {FP32: 4, FP16: 2, INT8: 1}


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """names: of splitvla_shared.encoders, fp32 always. calibration: folder of frames, None = scenes made in code."""

    names: tuple[str, ...] = (FP32,)
    calibration: Path | None = None
    floor: Floor = DEFAULT_FLOOR


FP32_ONLY = EncoderOptions()


def variant_bytes(source: Checkpoint, options: EncoderOptions) -> int:
    """Disk space of the variants beside the float32 encoder."""
    weights = sum(int(np.prod(entry.shape)) for entry in source.vision_tensors.values())
    return sum(weights * _WEIGHT_BYTES[name] for name in options.names if name != FP32)


def variant_frames(options: EncoderOptions, pipeline: ImagePipeline, vision: VisionGeometry) -> list[Image]:
    """What the variants are fitted to, through the robot's image pipeline; none where there is no variant.

    Raises ObservationError for calibration frames that can't be read, ConfigError for a pipeline that can't run here.
    """
    if set(options.names) <= {FP32}:
        return []
    if options.calibration is None:  # scenes of the right size already, which need no decoder
        return calibration_frames(None, vision.image_size)
    square = build_pipeline(pipeline, "none", vision, vision.letterbox_fill or GRAY)
    return calibration_frames(options.calibration, vision.image_size, square)


def write_variants(
    source: Checkpoint, edge: Path, cloud: Bundle, options: EncoderOptions, frames: list[Image], report: Progress
) -> dict[str, Any]:
    """Write the variants into `edge`, where encoder.onnx lies; returns what the manifest says of them.

    `cloud` is the language half as far as it is written: a small one is run for token agreement. Raises BundleError
    for a variant below the floor, CheckpointError for weights that a variant can't hold.
    """
    names = [name for name in options.names if name != FP32]
    if not names:
        return {}
    table: dict[str, Any] = {FP32: {"file": ENCODER_FILES[FP32]}}
    described = f"{len(frames)} {'built-in' if options.calibration is None else 'given'} frames"
    tensors = source.vision_tensors
    size = sum(entry.size for entry in tensors.values())
    calibration = calibrate(source.vision, tensors, frames, counter(report, "encoder calibration", size))
    agreement = _token_agreement(source, cloud, calibration)
    for name in names:
        weights = rescaled(tensors, calibration.factors) if name == INT8 else tensors
        path = edge / ENCODER_FILES[name]
        linears = sum(entry.size for entry in weights.values() if len(entry.shape) == 2)
        _WRITERS[name](edge / ENCODER_FILES[FP32], weights, path, counter(report, f"encoder {name}", linears))
        embeddings = run_graph(name, path, frames, counter(report, f"encoder {name} parity", len(frames)))
        parity = compare(calibration.embeddings, embeddings)
        check_floor(name, parity, options.floor, described)
        parity = dataclasses.replace(parity, **agreement(embeddings))
        table[name] = {"file": path.name, **parity.to_json(), "calibration": described}
    return {"encoders": table}


def _token_agreement(
    source: Checkpoint, cloud: Bundle, calibration: Calibration
) -> Callable[[FloatArray], Mapping[str, Any]]:
    """Token fields of Parity for a variant's embeddings; a backbone that is too large to run here gives the reason."""
    reason = too_large_to_run(source.language_tensors)
    if reason:
        return lambda embeddings: {"token_agreement_note": reason}
    precision: Precision = cloud.extra.get(PRECISION_KEY) or "fp32"
    judge = TokenJudge(cloud, precision, calibration.embeddings)
    return lambda embeddings: {"token_agreement": judge.agreement(embeddings)}
