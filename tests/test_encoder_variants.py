"""Reduced encoders: the same numbers as the reference quantiser's, measured against float32, refused when poor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image as PilImage

import splitvla_cloud.split.encoder_variants as variants
from splitvla_cloud.__main__ import main
from splitvla_cloud.split import split
from splitvla_cloud.split.calibration_frames import BUILT_IN, calibration_frames
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.split.encoder_export import export_encoder, load_edge_model
from splitvla_cloud.split.encoder_parity import DEFAULT_FLOOR, NO_FLOOR, Floor, Parity, compare, run_graph
from splitvla_cloud.split.encoder_variants import EncoderOptions
from splitvla_cloud.split.reduced_graph import write_float16, write_int8
from splitvla_cloud.split.smoothing import Factors, RescaledTensor, calibrate, rescaled
from splitvla_edge.encoding.encoder import OnnxEncoder, encoders_of
from splitvla_edge.encoding.probe import check_encoder
from splitvla_shared.bundle import open_bundle
from splitvla_shared.encoders import ENCODER_FILES, FP16, FP32, INT8, parse_encoders
from splitvla_shared.errors import BundleError, CheckpointError, ConfigError, ObservationError
from splitvla_shared.image_pipelines import ImagePipeline

SIZE = 224
ALL = (FP32, FP16, INT8)


def _ignore(count: int) -> None:
    pass


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def frames() -> list[Any]:
    return calibration_frames(None, SIZE)[:2]


@pytest.fixture(scope="module")
def exact(tiny_bundles: Path) -> Path:
    return tiny_bundles / "edge" / ENCODER_FILES[FP32]


# --- smoothing --------------------------------------------------------------------------------------------------------


def test_smoothing_changes_nothing_but_the_rounding(source: Checkpoint, frames: list[Any]) -> None:
    calibration = calibrate(source.vision, source.vision_tensors, frames, _ignore)
    smooth = rescaled(source.vision_tensors, calibration.factors)
    model = load_edge_model(source.vision, smooth)
    with torch.no_grad():
        embeddings = np.concatenate([model(torch.from_numpy(frame)[None]).numpy() for frame in frames])
    scale = np.abs(calibration.embeddings).max()
    np.testing.assert_allclose(embeddings, calibration.embeddings, rtol=0, atol=1e-5 * scale)
    changed = [
        name
        for name in smooth
        if not torch.equal(smooth[name].read().float(), source.vision_tensors[name].read().float())
    ]
    kinds = (
        "norm1.weight",
        "norm1.bias",
        "norm2.weight",
        "norm2.bias",
        "qkv.weight",
        "qkv.bias",
        "proj.weight",
        "fc1.weight",
    )
    assert len(changed) == len(kinds) * sum(tower.depth for tower in source.vision.towers)
    assert all(name.endswith(kinds) for name in changed)


def test_calibration_reads_each_weight_once_and_reports_it(source: Checkpoint, frames: list[Any]) -> None:
    sizes: list[int] = []
    calibrate(source.vision, source.vision_tensors, frames[:1], sizes.append)
    assert sum(sizes) == sum(entry.size for entry in source.vision_tensors.values())


def test_calibration_gives_what_the_float32_graph_gives(source: Checkpoint, exact: Path, frames: list[Any]) -> None:
    calibration = calibrate(source.vision, source.vision_tensors, frames, _ignore)
    np.testing.assert_allclose(calibration.embeddings, run_graph(FP32, exact, frames, _ignore), rtol=0, atol=1e-4)


# --- graphs -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # the reference quantiser's own
def test_int8_is_what_onnxruntimes_quantiser_writes(
    source: Checkpoint, exact: Path, frames: list[Any], tmp_path: Path
) -> None:
    """Same nodes, same codes; ours holds one weight at a time where theirs holds the model several times."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        exact,
        tmp_path / "theirs.onnx",
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul"],
        extra_options={"MatMulConstBOnly": True},
    )
    write_int8(exact, source.vision_tensors, tmp_path / "ours.onnx", _ignore)
    theirs, ours = (run_graph(INT8, tmp_path / name, frames, _ignore) for name in ("theirs.onnx", "ours.onnx"))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("write", [write_float16, write_int8])
def test_weights_beside_the_graph_give_the_same_numbers(
    write: Any, source: Checkpoint, exact: Path, frames: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    write(exact, source.vision_tensors, tmp_path / "inside.onnx", _ignore)
    write(exact, source.vision_tensors, tmp_path / "outside" / "graph.onnx", _ignore, 0)
    assert {file.name for file in (tmp_path / "outside").iterdir()} == {"graph.onnx", "graph.onnx.data"}
    inside, outside = (
        run_graph(INT8, tmp_path / name, frames, _ignore) for name in ("inside.onnx", "outside/graph.onnx")
    )
    np.testing.assert_array_equal(inside, outside)


def test_a_float32_graph_with_weights_beside_it_can_be_reduced(
    source: Checkpoint, frames: list[Any], tmp_path: Path
) -> None:
    """The layout of full-size models."""
    export_encoder(source.vision, source.vision_tensors, tmp_path / "exact.onnx", 0)
    write_int8(tmp_path / "exact.onnx", source.vision_tensors, tmp_path / "int8.onnx", _ignore)
    wanted = run_graph(FP32, tmp_path / "exact.onnx", frames, _ignore)
    assert compare(wanted, run_graph(INT8, tmp_path / "int8.onnx", frames, _ignore)).passes(DEFAULT_FLOOR)


def test_float16_files_hold_half_and_compute_in_float32(source: Checkpoint, exact: Path, tmp_path: Path) -> None:
    write_float16(exact, source.vision_tensors, tmp_path / "half.onnx", _ignore)
    graph = onnx.load(tmp_path / "half.onnx").graph
    half = [tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    linears = [name for name, entry in source.vision_tensors.items() if len(entry.shape) == 2]
    assert sorted(half) == sorted(f"{name}.half" for name in linears)
    casts = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "Cast" and node.input[0] in half}
    assert set(casts.values()) <= {name for node in graph.node if node.op_type == "MatMul" for name in node.input}


def test_a_weight_that_overflows_float16_is_named(source: Checkpoint, exact: Path, tmp_path: Path) -> None:
    name = "projector.fc1.weight"
    loud = dict(source.vision_tensors)
    loud[name] = RescaledTensor(loud[name], Factors(torch.full((loud[name].shape[0],), 1e7)))
    with pytest.raises(CheckpointError, match=r"projector\.fc1\.weight is too large for float16"):
        write_float16(exact, loud, tmp_path / "half.onnx", _ignore)


# --- outliers and the floor -------------------------------------------------------------------------------------------


def test_outlying_channels_need_the_smoothing(source: Checkpoint, frames: list[Any], tmp_path: Path) -> None:
    """Four LayerNorm channels x40, as real ViTs have them: 8 bits a tensor drown the others, unless they are moved."""
    tensors = dict(source.vision_tensors)
    for name, entry in source.vision_tensors.items():
        if ".norm" in name and name.endswith(".weight") and "blocks." in name:
            gain = torch.ones(entry.shape[0])
            gain[:4] = 40
            tensors[name] = RescaledTensor(entry, Factors(gain))
    export_encoder(source.vision, tensors, tmp_path / "exact.onnx")
    calibration = calibrate(source.vision, tensors, frames, _ignore)
    found = {}
    for kind, weights in (("plain", tensors), ("smooth", rescaled(tensors, calibration.factors))):
        write_int8(tmp_path / "exact.onnx", weights, tmp_path / f"{kind}.onnx", _ignore)
        found[kind] = compare(calibration.embeddings, run_graph(INT8, tmp_path / f"{kind}.onnx", frames, _ignore))
    assert not found["plain"].passes(DEFAULT_FLOOR), found
    assert found["smooth"].passes(DEFAULT_FLOOR), found
    assert found["smooth"].relative_error < 0.7 * found["plain"].relative_error


def test_a_poor_variant_is_refused_and_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    strict = EncoderOptions(ALL, floor=Floor(cosine_mean=0.999999, cosine_min=0.999999))
    with pytest.raises(BundleError, match=r"encoder int8: cosine to float32 is 0\.99.*--allow-poor-encoder"):
        split(tiny_checkpoint, tmp_path / "out", encoders=strict)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("floor", [DEFAULT_FLOOR, NO_FLOOR])
def test_a_variant_that_is_not_finite_passes_no_floor(floor: Floor) -> None:
    wanted = np.random.default_rng(0).standard_normal((1, 4, 8)).astype(np.float32)
    assert not compare(wanted, np.full_like(wanted, np.nan)).passes(floor)
    assert not compare(wanted, np.full_like(wanted, np.inf)).passes(floor)
    assert compare(wanted, wanted).passes(floor)


def test_parity_figures_are_what_they_say() -> None:
    wanted = np.array([[[1, 0], [0, 1]]], np.float32)
    found = np.array([[[2, 0], [1, 1]]], np.float32)
    parity = compare(wanted, found)
    assert (parity.cosine_mean, parity.cosine_min) == pytest.approx(((1 + 0.5**0.5) / 2, 0.5**0.5))
    assert parity.relative_error == pytest.approx(2**0.5)  # tokens lie 0.5 sqrt 2 from their mean
    assert parity == Parity(parity.cosine_mean, parity.cosine_min, parity.relative_error)


# --- in the bundle ----------------------------------------------------------------------------------------------------


def test_each_variants_parity_stands_in_the_bundle(variant_bundles: Path) -> None:
    bundle = open_bundle(variant_bundles / "edge", "edge")
    assert encoders_of(bundle) == ALL
    table = bundle.extra["encoders"]
    assert {name: entry["file"] for name, entry in table.items()} == ENCODER_FILES
    assert table[FP16]["cosine_min"] > 0.9999
    assert table[INT8]["cosine_mean"] > 0.999
    assert (table[FP16]["token_agreement"], table[FP16]["calibration"]) == (1.0, "8 built-in frames")
    assert 0.4 < table[INT8]["token_agreement"] <= 1.0


@pytest.mark.parametrize("variant", ALL)
def test_the_robot_runs_every_variant(variant_bundles: Path, variant: str, frames: list[Any]) -> None:
    bundle = open_bundle(variant_bundles / "edge", "edge")
    encoder = OnnxEncoder(bundle, variant=variant)
    check_encoder(encoder, bundle, variant)
    exact = OnnxEncoder(bundle).embed(frames[0])
    assert compare(exact[None], encoder.embed(frames[0])[None]).passes(DEFAULT_FLOOR)


def test_a_bundle_of_one_encoder_says_nothing_of_variants(tiny_bundles: Path) -> None:
    bundle = open_bundle(tiny_bundles / "edge", "edge")
    assert "encoders" not in bundle.extra
    with pytest.raises(BundleError, match=r"has no encoder 'int8'; it has fp32; split again with --encoder"):
        OnnxEncoder(bundle, variant=INT8)


def test_a_file_that_the_manifest_does_not_speak_of_is_not_run(
    tiny_bundles: Path, variant_bundles: Path, tmp_path: Path
) -> None:

    edge = Path(shutil.copytree(tiny_bundles / "edge", tmp_path / "edge"))
    shutil.copy(variant_bundles / "edge" / ENCODER_FILES[INT8], edge)
    with pytest.raises(BundleError, match="has no encoder 'int8'"):
        OnnxEncoder(open_bundle(edge, "edge"), variant=INT8)


def test_a_large_backbone_is_not_run_and_the_bundle_says_so(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "too_large_to_run", lambda tensors: "not run: too large")
    split(tiny_checkpoint, tmp_path / "out", encoders=EncoderOptions((FP32, INT8)))
    entry = json.loads((tmp_path / "out" / "edge" / "spec.json").read_text())["extra"]["encoders"][INT8]
    assert (entry["token_agreement"], entry["token_agreement_note"]) == (None, "not run: too large")


def test_variants_do_not_change_the_fingerprint(variant_bundles: Path, tiny_bundles: Path) -> None:
    assert open_bundle(variant_bundles / "edge", "edge").spec == open_bundle(tiny_bundles / "edge", "edge").spec


def test_the_command_takes_names_and_frames(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PilImage.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / "one.png")
    command = ["split", str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--encoder", "int8"]
    assert main([*command, "--calibration", str(tmp_path)]) == 0
    entry = open_bundle(tmp_path / "out" / "edge", "edge").extra["encoders"][INT8]
    assert entry["calibration"] == "1 given frames"
    assert main([*command, "--encoder", "int4"]) == ConfigError.exit_code
    assert "encoder 'int4' is unknown; any of fp32, fp16, int8" in capsys.readouterr().err


def test_encoder_names_are_parsed_in_one_order() -> None:
    assert parse_encoders("INT8, fp16") == ALL
    assert parse_encoders("fp32") == (FP32,)
    with pytest.raises(ConfigError, match="encoder '' is unknown"):
        parse_encoders("fp16,")


# --- frames -----------------------------------------------------------------------------------------------------------


def test_built_in_frames_are_the_same_everywhere_and_differ_from_each_other() -> None:
    first, again = calibration_frames(None, SIZE), calibration_frames(None, SIZE)
    assert len(first) == BUILT_IN
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert {(frame.shape, frame.dtype) for frame in first} == {((SIZE, SIZE, 3), np.dtype(np.uint8))}
    means = [float(frame.mean()) for frame in first]
    assert len({frame.tobytes() for frame in first}) == BUILT_IN
    assert min(means) < 60 < 140 < max(means)


def test_only_given_frames_need_the_decoder_of_the_robots_pipeline(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ConfigError("pip install simplejpeg")

    monkeypatch.setattr("splitvla_shared.preprocess.image_pipelines.check_decoder", missing)
    built_in = variants.variant_frames(EncoderOptions(ALL), ImagePipeline.EVAL, source.vision)
    assert len(built_in) == BUILT_IN
    with pytest.raises(ConfigError, match="simplejpeg"):
        variants.variant_frames(EncoderOptions(ALL, tmp_path), ImagePipeline.EVAL, source.vision)


def test_a_folder_of_frames_is_thinned_evenly_with_the_folders_in_it(tmp_path: Path) -> None:
    for index in range(64):
        folder = tmp_path / f"episode-{index // 32}"
        folder.mkdir(exist_ok=True)
        PilImage.fromarray(np.full((8, 10, 3), index, np.uint8)).save(folder / f"{index:03}.png")
    (tmp_path / "notes.txt").write_text("no image")
    frames = calibration_frames(tmp_path, 16)
    assert (len(frames), int(frames[0][0, 0, 0]), int(frames[-1][0, 0, 0])) == (32, 0, 63)


@pytest.mark.parametrize(("content", "message"), [(None, "holds no image"), (b"junk", r"a\.png: not an image")])
def test_a_folder_without_readable_frames_is_an_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ObservationError, match=message):
        calibration_frames(tmp_path, 16)
    with pytest.raises(ObservationError, match="is no folder"):
        calibration_frames(tmp_path / "absent", 16)
