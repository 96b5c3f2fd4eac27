"""The codec's basis folded into the projector: the same coefficients as numpy's product, and the same embeddings."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest

from splitvla_edge.calibrate.learn import learn, sealed
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.encoding.onnx_graph import Linear, cut, last_linear
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import FloatArray, Image

# Of the coefficients' length. Both ways sum `dim` products in float32, in another order and with another grouping:
# each rounding is 6e-8 of a term, and what is compared is a sum of 128 terms of either sign.
TOLERANCE = 1e-5


@pytest.fixture(scope="session")
def outside(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edge bundle whose weights lie beside the graph, as those of a large model do."""
    from splitvla_cloud import split as package
    from splitvla_cloud.split.encoder_export import export_encoder

    out = tmp_path_factory.mktemp("bundles") / "outside"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "export_encoder", functools.partial(export_encoder, inline_limit_bytes=0))
        package.split(tiny_checkpoint, out)
    return out / "edge"


def frames(size: int, count: int = 8) -> list[Image]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def tables_for(bundle: Bundle) -> CodecTables:
    encoder = OnnxEncoder(bundle, 1)
    return sealed(learn([[encoder.embed(frame) for frame in frames(bundle.spec.image_size)]], columns=24))[0]


@pytest.mark.parametrize("variant", ["fp32", "fp16"])
def test_the_folded_layer_gives_the_product_of_embedding_and_basis(variant_bundles: Path, variant: str) -> None:
    bundle = open_bundle(variant_bundles / "edge", "edge")
    tables = tables_for(bundle)
    encoder = OnnxEncoder(bundle, 1, variant=variant, tables=tables)
    for image in frames(bundle.spec.image_size, 2):
        expected = (encoder.embed(image) - tables.channel_mean) @ tables.analysis
        found = encoder.coefficients(image)
        assert found.shape == (bundle.spec.patches, 24)
        assert found.dtype == np.float32
        assert np.linalg.norm(found - expected) < TOLERANCE * np.linalg.norm(expected)


def test_an_int8_encoder_has_its_coefficients_from_the_float32_layer(variant_bundles: Path) -> None:
    """Which is nearer to the exact encoder's than its own 8-bit layer is."""
    bundle = open_bundle(variant_bundles / "edge", "edge")
    tables = tables_for(bundle)
    exact = OnnxEncoder(bundle, 1)
    encoder = OnnxEncoder(bundle, 1, variant="int8", tables=tables)
    image = frames(bundle.spec.image_size, 1)[0]
    wanted, own = ((each.embed(image) - tables.channel_mean) @ tables.analysis for each in (exact, encoder))
    assert np.linalg.norm(encoder.coefficients(image) - wanted) < np.linalg.norm(own - wanted)


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_the_embedding_is_the_uncut_graphs_bit_for_bit(variant_bundles: Path, variant: str) -> None:
    bundle = open_bundle(variant_bundles / "edge", "edge")
    image = frames(bundle.spec.image_size, 1)[0]
    whole = OnnxEncoder(bundle, 1, variant=variant)
    folded = OnnxEncoder(bundle, 1, variant=variant, tables=tables_for(bundle))
    np.testing.assert_array_equal(folded.embed(image), whole.embed(image))


def test_weights_beside_the_graph_are_used_where_they_lie(outside: Path) -> None:
    bundle = open_bundle(outside, "edge")
    before = sorted(file.name for file in outside.iterdir())
    tables = tables_for(bundle)
    encoder = OnnxEncoder(bundle, 1, tables=tables)
    image = frames(bundle.spec.image_size, 1)[0]
    expected = (OnnxEncoder(bundle, 1).embed(image) - tables.channel_mean) @ tables.analysis
    assert np.linalg.norm(encoder.coefficients(image) - expected) < TOLERANCE * np.linalg.norm(expected)
    assert sorted(file.name for file in outside.iterdir()) == before
    parts = cut(outside / "encoder.onnx", bundle.spec.patches, len(last_linear(outside / "encoder.onnx").weight))
    for data in (parts.trunk, parts.head):
        initializers = onnx.load_model_from_string(data).graph.initializer
        large = [each for each in initializers if len(each.dims) == 2]
        assert large
        assert all(each.data_location == onnx.TensorProto.EXTERNAL for each in large)


def test_the_cut_parts_are_valid_graphs_that_share_no_weight(tiny_bundles: Path) -> None:
    path = tiny_bundles / "edge" / "encoder.onnx"
    layer = last_linear(path)
    parts = cut(path, 256, len(layer.weight))
    names = []
    for data in (parts.trunk, parts.head):
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
        names.append({initializer.name for initializer in model.graph.initializer})
    whole = {initializer.name for initializer in onnx.load(path).graph.initializer}
    assert not names[0] & names[1]
    assert names[0] | names[1] == whole


def test_tables_of_another_width_are_refused(tiny_bundles: Path) -> None:
    from tests.codec_tables import formula_tables

    with pytest.raises(BundleError, match="128 numbers a patch, the codec tables are for 12"):
        OnnxEncoder(open_bundle(tiny_bundles / "edge", "edge"), 1, tables=formula_tables())


def test_a_graph_without_a_projector_is_refused_in_one_line(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    node = helper.make_node("Cast", ["image"], ["patches"], to=TensorProto.FLOAT)
    ends = [[value("image", TensorProto.UINT8, [1])], [value("patches", TensorProto.FLOAT, [1])]]
    onnx.save(helper.make_model(helper.make_graph([node], "g", *ends)), tmp_path / "encoder.onnx")
    with pytest.raises(BundleError, match="no Gelu"):
        last_linear(tmp_path / "encoder.onnx")
    (tmp_path / "encoder.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(BundleError, match="can't be read as a graph"):
        last_linear(tmp_path / "encoder.onnx")


def test_coefficients_without_tables_are_a_fault_of_the_program(tiny_bundles: Path) -> None:
    encoder = OnnxEncoder(open_bundle(tiny_bundles / "edge", "edge"), 1)
    with pytest.raises(ValueError, match="without codec tables"):
        encoder.coefficients(frames(224, 1)[0])


def test_hardware_that_computes_the_coefficients_wrongly_is_found_out_at_start(
    tiny_bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider's own test compares embeddings, which come from another last layer."""
    bundle = open_bundle(tiny_bundles / "edge", "edge")
    tables = tables_for(bundle)

    def turned(layer: Linear, mean: FloatArray, basis: FloatArray) -> Linear:
        return Linear(layer.weight @ -basis, layer.bias[: basis.shape[1]])

    monkeypatch.setattr(Linear, "folded", turned)
    with pytest.raises(BundleError, match=r"on cpu the codec's coefficients are off by .* --provider cpu"):
        OnnxEncoder(bundle, 1, tables=tables)
