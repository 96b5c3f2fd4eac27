"""The encoder: its graph is checked against the spec, and ONNX Runtime's failures arrive as our own errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from splitvla_edge.encoding.encoder import ENCODER_FILE, OnnxEncoder
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.errors import BundleError, ConfigError
from tests.specs import make_spec

SIZE, PATCHES, DIM = 4, 8, 6

SPEC = make_spec(patches=PATCHES, embed_dim=DIM, image_size=SIZE, max_cameras=2)


def _write_encoder(
    folder: Path,
    *,
    names: tuple[str, str] = ("image", "patches"),
    size: int = SIZE,
    dim: int = DIM,
    output_type: int = TensorProto.FLOAT,
    divisor: float = 2.0,
) -> Bundle:
    """A graph that reshapes the SIZE*SIZE*3 = PATCHES*DIM numbers of the image and divides them."""
    numbers = size * size * 3
    source, target = names
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [1, numbers // dim, dim])
    by = helper.make_tensor("by", output_type, [], [divisor])
    nodes = [
        helper.make_node("Cast", [source], ["cast"], to=output_type),
        helper.make_node("Div", ["cast", "by"], ["divided"]),
        helper.make_node("Reshape", ["divided", "shape"], [target]),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(source, TensorProto.UINT8, [1, size, size, 3])],
        [helper.make_tensor_value_info(target, output_type, [1, numbers // dim, dim])],
        [shape, by],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / ENCODER_FILE)
    return Bundle(folder, "edge", SPEC)


def _image() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, SIZE, 3)


def test_an_image_becomes_patch_embeddings(tmp_path: Path) -> None:
    patches = OnnxEncoder(_write_encoder(tmp_path), threads=1).embed(_image())
    assert patches.dtype == np.float32
    np.testing.assert_array_equal(patches, np.arange(PATCHES * DIM).reshape(PATCHES, DIM) / 2)


def test_a_mirrored_view_is_read_as_it_looks(tmp_path: Path) -> None:
    """Cameras are often mounted upside down; numpy's flips are views with negative strides."""
    encoder = OnnxEncoder(_write_encoder(tmp_path))
    flipped = _image()[::-1, ::-1]
    np.testing.assert_array_equal(encoder.embed(flipped), encoder.embed(flipped.copy()))


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"names": ("pixels", "patches")}, "pixels"),
        ({"names": ("image", "features")}, "features"),
        ({"size": 8}, r"\[1, 8, 8, 3\]"),
        ({"dim": 12}, r"\[1, 4, 12\]"),
        ({"output_type": TensorProto.FLOAT16}, "float16"),
    ],
)
def test_a_graph_that_is_not_the_specs_is_refused_by_what_differs(
    tmp_path: Path, wrong: dict[str, Any], found: str
) -> None:
    bundle = _write_encoder(tmp_path, **wrong)
    with pytest.raises(BundleError, match=found):
        OnnxEncoder(bundle)


@pytest.mark.parametrize("content", [b"", b"not a graph", bytes(200)])
def test_a_damaged_graph_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ENCODER_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=r"encoder\.onnx can't be loaded") as caught:
        OnnxEncoder(Bundle(tmp_path, "edge", SPEC))
    assert "\n" not in str(caught.value)


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"encoder\.onnx is missing"):
        OnnxEncoder(Bundle(tmp_path, "edge", SPEC))


def test_a_graph_that_divides_by_zero_fails_at_start_not_on_the_robot(tmp_path: Path) -> None:
    """No uint8 image can cause a number that is not finite, so it is the bundle's fault and shows in the warm-up."""
    with pytest.raises(BundleError, match="not finite"):
        OnnxEncoder(_write_encoder(tmp_path, divisor=0.0))


def test_a_failure_inside_onnxruntime_is_a_bundle_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

    encoder = OnnxEncoder(_write_encoder(tmp_path))

    def run(*_: object) -> None:
        raise ort_errors.RuntimeException("out of\nmemory")

    monkeypatch.setattr(encoder, "_session", SimpleNamespace(run=run))
    with pytest.raises(BundleError, match="encoder failed: out of memory"):
        encoder.embed(_image())


def test_the_wrong_image_size_is_a_programming_error(tmp_path: Path) -> None:
    encoder = OnnxEncoder(_write_encoder(tmp_path))
    with pytest.raises(ValueError, match=r"\(4, 4, 3\)"):
        encoder.embed(np.zeros((5, 4, 3), np.uint8))


def test_settings_that_make_no_sense_are_configuration_errors(tmp_path: Path) -> None:
    bundle = _write_encoder(tmp_path)
    with pytest.raises(ConfigError, match="threads is 0"):
        OnnxEncoder(bundle, threads=0)
    with pytest.raises(ConfigError, match=r"'npu' is unknown; one of auto, tensorrt, cuda, cpu"):
        OnnxEncoder(bundle, provider="npu")


def test_the_split_encoder_gives_the_references_projected_patches(
    reference_checkpoint: Path, reference_bundles: Path
) -> None:
    golden = np.load(reference_checkpoint / "golden.npz")
    bundle = open_bundle(reference_bundles / "edge", "edge")
    image = golden["image/noise_224"]
    index = golden["image_names"].tolist().index("noise_224")
    patches = OnnxEncoder(bundle, threads=1).embed(image)
    np.testing.assert_allclose(patches, golden["fp32/projected"][index], rtol=0, atol=2e-4)


def test_the_encoder_of_the_projects_own_checkpoint_depends_on_the_image(tiny_bundles: Path) -> None:
    bundle = open_bundle(tiny_bundles / "edge", "edge")
    size = bundle.spec.image_size
    encoder = OnnxEncoder(bundle, threads=1)
    black, white = (encoder.embed(np.full((size, size, 3), value, np.uint8)) for value in (0, 255))
    assert black.shape == (bundle.spec.patches, bundle.spec.embed_dim)
    assert not np.allclose(black, white)


def test_a_spec_of_another_size_does_not_fit_the_split_encoder(tiny_bundles: Path) -> None:
    bundle = open_bundle(tiny_bundles / "edge", "edge")
    other = dataclasses.replace(bundle, spec=dataclasses.replace(bundle.spec, embed_dim=bundle.spec.embed_dim + 1))
    with pytest.raises(BundleError, match="outputs are"):
        OnnxEncoder(other)
