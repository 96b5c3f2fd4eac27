"""`split` as a whole: two bundles with one fingerprint, or nothing at all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import splitvla_cloud.split as split_package
from benchmarks.tiny_checkpoint import write_tiny_checkpoint
from splitvla_cloud.split import split
from splitvla_cloud.split.encoder_variants import EncoderOptions
from splitvla_shared.bundle import open_bundle
from splitvla_shared.errors import BundleError, CheckpointError, ObservationError
from splitvla_shared.image_pipelines import ImagePipeline
from splitvla_shared.preprocess.image_pipelines import build_pipeline
from splitvla_shared.preprocess.images import GRAY
from splitvla_shared.spec import Resize

FILES = {"encoder.onnx", "statistics.json", "probe.json", "sensitivity.npy", "spec.json"}


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the seconds that the ONNX exporter takes; what it writes has tests of its own."""
    monkeypatch.setattr(
        split_package, "export_encoder", lambda vision, tensors, path, report: path.write_bytes(b"graph")
    )


def test_both_bundles_are_whole_and_carry_one_fingerprint(tiny_bundles: Path) -> None:
    edge, cloud = open_bundle(tiny_bundles / "edge", "edge"), open_bundle(tiny_bundles / "cloud", "cloud")
    assert edge.spec == cloud.spec
    assert edge.spec.fingerprint == edge.spec.computed_fingerprint()
    assert (edge.spec.name, edge.spec.patches, edge.spec.embed_dim, edge.spec.image_size) == ("tiny", 256, 128, 224)
    assert (edge.spec.action_vocab_size, edge.spec.action_bins, edge.spec.max_action_dims) == (1024, 256, 7)
    assert {file.name for file in (tiny_bundles / "edge").iterdir()} == FILES


def test_the_edge_gets_the_statistics_in_force(tiny_bundles: Path, tiny_checkpoint: Path) -> None:
    mine = json.loads((tiny_bundles / "edge" / "statistics.json").read_text())
    assert mine == json.loads((tiny_checkpoint / "dataset_statistics.json").read_text())


@pytest.mark.usefixtures("no_export")
def test_letterbox_models_tell_the_edge_their_grey(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "old", layout="siglip-v01")
    spec = split(tmp_path / "old", tmp_path / "out")
    edge = open_bundle(tmp_path / "out" / "edge", "edge")
    assert (spec.resize, edge.extra["letterbox_fill"]) == (Resize.LETTERBOX, [127, 127, 127])


@pytest.mark.usefixtures("no_export")
def test_how_the_weights_are_cut_into_files_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "a" / "model")
    write_tiny_checkpoint(tmp_path / "b" / "model", max_shard_bytes=300_000)
    one = split(tmp_path / "a" / "model", tmp_path / "a" / "out")
    many = split(tmp_path / "b" / "model", tmp_path / "b" / "out")
    assert one == many


CHANGES = {
    "projector.fc1.bias": "vision_sha256",
    "vision_backbone.featurizer.blocks.0.ls1.scale_factor": "vision_sha256",
    "language_model.model.norm.weight": "language_sha256",
}


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize(("tensor", "field"), CHANGES.items())
def test_one_changed_weight_changes_the_fingerprint(
    tmp_path: Path, tiny_checkpoint: Path, tiny_bundles: Path, tensor: str, field: str
) -> None:
    changed = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    weights = load_file(changed / "model.safetensors")
    weights[tensor][0] += 1
    save_file(weights, changed / "model.safetensors")
    before, after = open_bundle(tiny_bundles / "edge", "edge").spec, split(changed, tmp_path / "out")
    names = [field.name for field in dataclasses.fields(before)]
    differing = {name for name in names if getattr(before, name) != getattr(after, name)}
    assert differing == {field, "fingerprint"}


@pytest.mark.usefixtures("no_export")
def test_what_no_tensor_shows_changes_the_fingerprint(
    tmp_path: Path, tiny_checkpoint: Path, tiny_bundles: Path
) -> None:
    """Another epsilon is another model, though every weight is the same."""
    changed = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    config = json.loads((changed / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-5
    (changed / "config.json").write_text(json.dumps(config))
    before = open_bundle(tiny_bundles / "edge", "edge").spec
    assert split(changed, tmp_path / "out").language_sha256 != before.language_sha256


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["projector.fc3.weight", "language_model.lm_head.weight"])
def test_a_weight_that_is_no_number_is_named_and_nothing_is_written(
    tmp_path: Path, tiny_checkpoint: Path, tensor: str, value: float
) -> None:
    broken = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    weights = load_file(broken / "model.safetensors")
    weights[tensor][3, 5] = value
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{tensor} holds NaN or infinity"):
        split(broken, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["tiny"]


def _no_weight_is_read(*given: object) -> NoReturn:
    raise AssertionError("found only after the weights were read")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "frames is no folder"), (b"junk", r"a\.png: not an image"), (b"", r"a\.png")]
)
def test_calibration_frames_that_can_not_be_read_are_found_before_any_weight_is(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "frames").mkdir()
        (tmp_path / "frames" / "a.png").write_bytes(content)
    monkeypatch.setattr(split_package, "tensors_sha256", _no_weight_is_read)
    encoders = EncoderOptions(("fp32", "int8"), tmp_path / "frames")
    with pytest.raises(ObservationError, match=message):
        split(tiny_checkpoint, tmp_path / "out", encoders=encoders)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_bos_is_found_before_any_weight_is_read(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    tokenizer = json.loads((bare / "tokenizer.json").read_text()) | {"post_processor": None}
    (bare / "tokenizer.json").write_text(json.dumps(tokenizer))
    monkeypatch.setattr(split_package, "tensors_sha256", _no_weight_is_read)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json puts no BOS .*add_bos_token"):
        split(bare, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["tiny"]


def test_calibration_frames_go_through_the_pipeline_that_the_bundle_names(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, no_export: None
) -> None:
    frame = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    PilImage.fromarray(frame).save(tmp_path / "a.png")
    seen: list[Any] = []

    def write(source: object, edge: object, cloud: object, options: object, frames: list[Any], report: object) -> Any:
        seen.extend(frames)
        return {}

    monkeypatch.setattr(split_package, "write_variants", write)
    encoders = EncoderOptions(("fp32", "int8"), tmp_path)
    spec = split(tiny_checkpoint, tmp_path / "out", image_pipeline=ImagePipeline.EVAL_CROP, encoders=encoders)
    np.testing.assert_array_equal(seen, [build_pipeline(ImagePipeline.EVAL_CROP, "none", spec, GRAY)(frame)])


@pytest.mark.parametrize(
    "failure",
    [OSError(28, "No space left on device"), SafetensorError("No space left on device"), KeyboardInterrupt()],
)
def test_a_failure_half_way_leaves_nothing_behind(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(vision: object, tensors: object, path: Path, report: object) -> None:
        path.write_bytes(b"half a graph")
        raise failure

    monkeypatch.setattr(split_package, "export_encoder", fail)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else BundleError
    with pytest.raises(expected):
        split(tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_export")
def test_an_empty_folder_may_be_there_already(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "out").mkdir()
    split(tiny_checkpoint, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["cloud", "edge"]


def test_a_folder_with_anything_in_it_is_refused_untouched(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(BundleError, match="is not empty"):
        split(tiny_checkpoint, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("kind", ["link", "mount", "current"])
def test_an_empty_folder_that_no_rename_can_replace_is_found_before_any_weight_is_read(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if kind == "link":
        out = tmp_path / "link"
        out.symlink_to(tmp_path / "out")
    elif kind == "mount":  # a container's volume
        monkeypatch.setattr(Path, "is_mount", lambda path: path == out)
    else:
        monkeypatch.chdir(out)
        out = Path()
    with pytest.raises(BundleError, match=r"can't be replaced as a whole; name a folder in it: --out .*bundles"):
        split(tiny_checkpoint, out)


def test_a_disk_without_room_is_found_before_anything_is_written(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(BundleError, match=r"GB free, the bundles need \d+\.\d GB$"):
        split(tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.partial-x1").mkdir()  # of a run that was killed
    with pytest.raises(BundleError, match=r"GB; remove \.out\.partial-x1 there, unless another split is writing it$"):
        split(tiny_checkpoint, tmp_path / "out")


@pytest.mark.usefixtures("no_export")
def test_progress_reaches_the_total_of_every_stage(tmp_path: Path, tiny_checkpoint: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    split(
        tiny_checkpoint,
        tmp_path / "out",
        progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)),
    )
    assert list(seen) == ["check", "backbone", "golden probe", "manifest"]
    for steps in seen.values():
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]


def test_weights_of_half_precision_are_checked_for_numbers_too(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "half", dtype=torch.float16)
    weights = load_file(tmp_path / "half" / "model.safetensors")
    weights["projector.fc1.bias"][0] = float("inf")
    save_file(weights, tmp_path / "half" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"projector\.fc1\.bias"):
        split(tmp_path / "half", tmp_path / "out")


def test_the_edge_bundle_names_its_image_pipeline(tiny_checkpoint: Path, tmp_path: Path, no_export: None) -> None:
    """It is the robot's default and no part of the model: the fingerprint stays."""
    specs = set()
    for pipeline in (ImagePipeline.HF, ImagePipeline.EVAL_CROP):
        out = tmp_path / pipeline.value
        specs.add(split(tiny_checkpoint, out, image_pipeline=pipeline).fingerprint)
        assert open_bundle(out / "edge", "edge").extra["image_pipeline"] == pipeline.value
    assert len(specs) == 1
