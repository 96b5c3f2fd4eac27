"""encoder.onnx in ONNX Runtime, the way the robot runs it."""

from __future__ import annotations

import collections
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from benchmarks.tiny_checkpoint import Sizes, write_tiny_checkpoint
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.split.encoder_export import export_encoder, load_edge_model

TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def encoder(reference_bundles: Path) -> Path:
    return reference_bundles / "edge" / "encoder.onnx"


@pytest.fixture(scope="module")
def golden(reference_checkpoint: Path) -> Any:
    with np.load(reference_checkpoint / "golden.npz") as file:
        return {name: file[name] for name in file.files if not name.startswith("bf16")}


def _square(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.array(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))[None]


def test_the_graph_takes_an_image_and_gives_patches(encoder: Path) -> None:
    session = onnxruntime.InferenceSession(str(encoder))
    (image,), (patches,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", [1, 224, 224, 3])
    assert (patches.name, patches.type, patches.shape) == ("patches", "tensor(float)", [1, 256, 96])


def test_onnx_runtime_gives_the_reference_patches(encoder: Path, golden: Any) -> None:
    session = onnxruntime.InferenceSession(str(encoder))
    for index, name in enumerate(golden["image_names"]):
        (patches,) = session.run(None, {"image": _square(golden[f"image/{name}"])})
        np.testing.assert_allclose(patches[0], golden["fp32/projected"][index], atol=TOLERANCE, rtol=0)


def test_the_graph_normalises_bit_for_bit(encoder: Path, golden: Any) -> None:
    """Read where each tower's first convolution takes its input, with all of ONNX Runtime's optimisations on."""
    model = onnx.load(encoder)
    taps = [node.input[0] for node in model.graph.node if node.op_type == "Conv"]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(tap, onnx.TensorProto.FLOAT, None) for tap in taps)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for index, name in enumerate(golden["image_names"]):
        pixels = session.run(taps, {"image": _square(golden[f"image/{name}"])})
        np.testing.assert_array_equal(np.concatenate(pixels, axis=1)[0], golden["pixel_values"][index])


def test_the_graph_holds_no_dead_blocks(encoder: Path, reference_checkpoint: Path) -> None:
    source = Checkpoint.open(reference_checkpoint)
    graph = onnx.load(encoder).graph
    operators = collections.Counter(node.op_type for node in graph.node)
    depth = sum(tower.depth for tower in source.vision.towers)
    assert (operators["LayerNormalization"], operators["Softmax"], operators["Gelu"]) == (2 * depth, depth, depth + 2)
    stored = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    used = sum(int(np.prod(entry.shape)) for entry in source.vision_tensors.values())
    assert used <= stored < used + 100


def test_an_old_onnx_runtime_can_read_the_graph(encoder: Path) -> None:
    """1.18 reads IR version 10 and operator set 21."""
    model = onnx.load(encoder)
    assert model.ir_version <= 10
    assert [(entry.domain, entry.version <= 21) for entry in model.opset_import] == [("", True)]


def test_the_two_file_layouts_hold_the_same_model(encoder: Path, reference_checkpoint: Path, tmp_path: Path) -> None:
    """Large models are traced without their weights; what is written must not differ from a trace with them."""
    source = Checkpoint.open(reference_checkpoint)
    export_encoder(source.vision, source.vision_tensors, tmp_path / "encoder.onnx", inline_limit_bytes=0)
    inline, outside = onnx.load(encoder).graph, onnx.load(tmp_path / "encoder.onnx").graph
    assert [node.op_type for node in inline.node] == [node.op_type for node in outside.node]
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    one, two = (
        onnxruntime.InferenceSession(str(file)).run(None, {"image": image})[0]
        for file in (encoder, tmp_path / "encoder.onnx")
    )
    np.testing.assert_array_equal(one, two)


def test_a_single_tower_with_weights_beside_the_graph(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The v0.1 layout, and the file layout of models that are too large for one protobuf; the exporter is silent."""
    sizes = Sizes(siglip_dim=32, siglip_blocks=2, image_size=56)
    write_tiny_checkpoint(tmp_path / "old", layout="siglip-v01", sizes=sizes)
    source = Checkpoint.open(tmp_path / "old")
    file = tmp_path / "encoder.onnx"
    export_encoder(source.vision, source.vision_tensors, file, inline_limit_bytes=0)
    assert capfd.readouterr() == ("", "")
    linears = [entry for name, entry in source.vision_tensors.items() if len(entry.shape) == 2]
    assert (tmp_path / "encoder.onnx.data").stat().st_size >= sum(4 * math.prod(entry.shape) for entry in linears)
    image = np.random.default_rng(0).integers(0, 256, (1, 56, 56, 3), dtype=np.uint8)
    (patches,) = onnxruntime.InferenceSession(str(file)).run(None, {"image": image})
    with torch.no_grad():
        expected = load_edge_model(source.vision, source.vision_tensors)(torch.from_numpy(image))
    np.testing.assert_allclose(patches, expected.numpy(), atol=TOLERANCE, rtol=0)
