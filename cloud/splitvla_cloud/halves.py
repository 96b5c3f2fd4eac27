"""Both halves of a model in one folder, for measurements that need the encoder and the backbone."""

from __future__ import annotations

from pathlib import Path

from splitvla_cloud.split.calibration_frames import calibration_frames
from splitvla_cloud.split.encoder_parity import run_graph
from splitvla_cloud.split.progress import Progress, counter
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.encoders import ENCODER_FILES, FP32
from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import FloatArray


def open_halves(bundles: Path) -> tuple[Bundle, Bundle]:
    """edge/ and cloud/ of the folder. Raises BundleError when they do not belong together."""
    edge, cloud = open_bundle(bundles / "edge", "edge"), open_bundle(bundles / "cloud", "cloud")
    if lines := edge.spec.differences(cloud.spec):
        raise BundleError(f"{bundles} holds halves of two models: {lines[0]}; see `adopt-codec`")
    return edge, cloud


def embedded(edge: Bundle, frames: Path, report: Progress) -> FloatArray:
    """Of up to 32 camera frames in a folder, by the fp32 encoder: float32 (frames, patches, dim).

    Raises ObservationError for frames that can't be read.
    """
    images = calibration_frames(frames, edge.spec.image_size)
    return run_graph(FP32, edge.path / ENCODER_FILES[FP32], images, counter(report, "frames", len(images)))
