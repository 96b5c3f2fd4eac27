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
from splitvla_shared.preprocess.image_pipelines import build_pipeline, read_fill, read_pipeline
from splitvla_shared.replaced import check_place


def open_halves(bundles: Path) -> tuple[Bundle, Bundle]:
    """edge/ and cloud/ of the folder, whose edge/ can be replaced by what is measured.

    Raises BundleError when it can't, or when the two do not belong together.
    """
    edge, cloud = open_bundle(bundles / "edge", "edge"), open_bundle(bundles / "cloud", "cloud")
    if lines := edge.spec.differences(cloud.spec):
        raise BundleError(f"{bundles} holds halves of two models: {lines[0]}; see `adopt-codec`")
    check_place(edge.path)
    return edge, cloud


def embedded(edge: Bundle, frames: Path, camera_transform: str, report: Progress) -> FloatArray:
    """Of up to 32 camera frames in a folder, by the fp32 encoder: float32 (frames, patches, dim).

    They go through the bundle's image pipeline, because what is learned of a patch is about what the robot sends there.
    Raises ObservationError for frames that can't be read, ConfigError for an unknown camera transform.
    """
    square = build_pipeline(read_pipeline(edge), camera_transform, edge.spec, read_fill(edge))
    images = calibration_frames(frames, edge.spec.image_size, square)
    return run_graph(FP32, edge.path / ENCODER_FILES[FP32], images, counter(report, "frames", len(images)))
