"""What the edge bundle says: statistics and padding, and a bundle error for whatever is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from splitvla_edge.model import read_edge_model
from splitvla_shared.bundle import Bundle
from splitvla_shared.errors import BundleError, ObservationError
from splitvla_shared.image_pipelines import ImagePipeline
from tests.fake_server import SPEC

STATISTICS = {
    "arm": {"action": {"q01": [-2.0] * 6 + [0.0], "q99": [4.0] * 6 + [1.0], "mask": [True] * 6 + [False]}},
    "hand": {"action": {"q01": [0.0, 0.0], "q99": [1.0, 1.0]}},
}


def _bundle(folder: Path, text: str, **extra: Any) -> Bundle:
    (folder / "statistics.json").write_text(text)
    return Bundle(folder, "edge", SPEC, extra)


def test_statistics_and_padding_come_from_the_bundle(tmp_path: Path) -> None:
    model = read_edge_model(_bundle(tmp_path, json.dumps(STATISTICS), letterbox_fill=[1, 2, 3]), "hand")
    assert (model.statistics.key, model.statistics.dims, model.fill) == ("hand", 2, (1, 2, 3))
    assert read_edge_model(_bundle(tmp_path, json.dumps(STATISTICS)), "arm").fill == (127, 127, 127)


def test_an_unknown_or_ambiguous_key_lists_the_keys(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path, json.dumps(STATISTICS))
    for key in (None, "nope"):
        with pytest.raises(ObservationError, match="arm, hand"):
            read_edge_model(bundle, key)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"arm": 1}', '{"arm": {"action": {"q01": [0]}}}'])
def test_damaged_statistics_are_a_bundle_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(BundleError):
        read_edge_model(_bundle(tmp_path, text), None)


def test_missing_statistics_and_an_odd_padding_are_bundle_errors(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"statistics\.json"):
        read_edge_model(Bundle(tmp_path, "edge", SPEC), None)
    for fill in ([1, 2], [1, 2, 256], [True, 0, 0], "gray", [0.5, 0.5, 0.5]):
        with pytest.raises(BundleError, match="letterbox_fill"):
            read_edge_model(_bundle(tmp_path, json.dumps(STATISTICS), letterbox_fill=fill), "arm")


def test_the_image_pipeline_is_the_bundles_and_hf_where_it_names_none(tmp_path: Path) -> None:
    text = json.dumps(STATISTICS)
    assert read_edge_model(_bundle(tmp_path, text), "arm").image_pipeline is ImagePipeline.HF
    for pipeline in ImagePipeline:
        bundle = _bundle(tmp_path, text, image_pipeline=pipeline.value)
        assert read_edge_model(bundle, "arm").image_pipeline is pipeline
    for odd in ("jpeg", 3, ["hf"]):
        with pytest.raises(BundleError, match=r"image_pipeline.*hf, eval, eval-crop"):
            read_edge_model(_bundle(tmp_path, text, image_pipeline=odd), "arm")
