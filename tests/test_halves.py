"""Measurements on both halves look at the pictures that the robot sends: turned, prepared and padded as it does it."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

import splitvla_cloud.halves as halves_module
from splitvla_cloud.__main__ import main
from splitvla_cloud.halves import embedded
from splitvla_cloud.split.calibration_frames import calibration_frames
from splitvla_cloud.verify.frames import read_frames
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.errors import ConfigError, ObservationError
from splitvla_shared.image_pipelines import ImagePipeline
from splitvla_shared.nouns import FloatArray, Image
from splitvla_shared.preprocess.image_pipelines import build_pipeline
from splitvla_shared.spec import Resize

FRAME = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
FILL = (1, 2, 3)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Image]:
    """What the encoder is shown."""
    shown: list[Image] = []

    def run_graph(name: str, path: Path, frames: list[Image], advance: Callable[[int], None]) -> FloatArray:
        shown.extend(frames)
        return np.zeros((len(frames), 1, 1), np.float32)

    monkeypatch.setattr(halves_module, "run_graph", run_graph)
    return shown


def _edge(tiny_bundles: Path, pipeline: ImagePipeline, resize: Resize) -> Bundle:
    edge = open_bundle(tiny_bundles / "edge", "edge")
    extra = dict(edge.extra) | {"image_pipeline": pipeline.value, "letterbox_fill": list(FILL)}
    return dataclasses.replace(edge, spec=dataclasses.replace(edge.spec, resize=resize), extra=extra)


@pytest.mark.parametrize("turn", ["none", "rotate180"])
@pytest.mark.parametrize("resize", list(Resize))
@pytest.mark.parametrize("pipeline", list(ImagePipeline))
def test_frames_are_prepared_as_the_robot_prepares_them(
    tiny_bundles: Path, tmp_path: Path, seen: list[Image], pipeline: ImagePipeline, resize: Resize, turn: str
) -> None:
    edge = _edge(tiny_bundles, pipeline, resize)
    PilImage.fromarray(FRAME).save(tmp_path / "a.png")
    embedded(edge, tmp_path, turn, lambda stage, done, total: None)
    np.testing.assert_array_equal(seen, [build_pipeline(pipeline, turn, edge.spec, FILL)(FRAME)])


def test_an_unknown_camera_transform_is_named_before_any_frame_is_read(tiny_bundles: Path, tmp_path: Path) -> None:
    edge = open_bundle(tiny_bundles / "edge", "edge")
    with pytest.raises(ConfigError, match=r"camera transform 'flip'.*rotate180"):
        embedded(edge, tmp_path / "absent", "flip", lambda stage, done, total: None)


@pytest.mark.parametrize(
    ("command", "module", "function"),
    [
        ("measure-sensitivity", "answer_sensitivity", "measure_sensitivity"),
        ("measure-codec", "codec_agreement", "measure_agreement"),
    ],
)
def test_the_commands_take_the_cameras_turn(
    monkeypatch: pytest.MonkeyPatch, command: str, module: str, function: str
) -> None:
    asked: list[Any] = []

    def measure(request: Any, report: object) -> list[Any]:
        asked.append(request)
        return []

    monkeypatch.setattr(f"splitvla_cloud.{module}.{function}", measure)
    options = ["--bundles", "b", "--frames", "f", "--instruction", "go"]
    assert main([command, *options, "--camera-transform", "rotate180"]) == 0
    assert main([command, *options]) == 0
    assert [request.camera_transform for request in asked] == ["rotate180", "none"]


@pytest.mark.parametrize("error", [EOFError("short"), IndexError("palette"), struct.error("unpack"), OSError("bad")])
def test_whatever_a_damaged_frame_raises_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(self: PilImage.Image, mode: str) -> None:
        raise error

    PilImage.fromarray(FRAME).save(tmp_path / "a.tif")
    monkeypatch.setattr(PilImage.Image, "convert", fail)
    for read in (read_frames, lambda folder: calibration_frames(folder, 16)):
        with pytest.raises(ObservationError, match=rf"a\.tif: {error.args[0]}; remove it"):
            read(tmp_path)
