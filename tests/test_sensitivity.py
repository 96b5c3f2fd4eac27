"""What the first layer makes of an error: measured at split, kept beside the encoder, read by calibration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.codec.sensitivity import (
    PATCHES_FILE,
    SENSITIVITY_FILE,
    Sensitivity,
    load_sensitivity,
    save_sensitivity,
)
from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import FloatArray
from tests.specs import make_spec

EYE = np.eye(6, dtype=np.float32)


def test_it_is_what_keys_and_values_behind_the_norm_make_of_an_error(tiny_bundles: Path) -> None:
    sensitivity = load_sensitivity(open_bundle(tiny_bundles / "edge", "edge"))
    assert sensitivity is not None
    assert sensitivity.patches is None
    matrix = sensitivity.directions
    layer = "model.layers.0."
    with safe_open(tiny_bundles / "cloud" / "model.safetensors", "pt") as file:
        gain = file.get_tensor(f"{layer}input_layernorm.weight").float().numpy()
        weights = [file.get_tensor(f"{layer}self_attn.{name}_proj.weight").float().numpy() for name in "kv"]
    error = np.random.default_rng(0).normal(size=(5, len(gain)))
    seen = sum(np.square((error * gain) @ weight.T).sum(axis=1) for weight in weights)
    found = np.einsum("ij,jk,ik->i", error, matrix, error)
    scale = np.trace(matrix) / sum(np.square(weight * gain).sum() for weight in weights)
    np.testing.assert_allclose(found, seen * scale, rtol=2e-3)  # float16 has eleven bits


def test_its_scale_is_one_whatever_the_model(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, "edge", make_spec(embed_dim=6, patches=4))
    save_sensitivity(tmp_path, Sensitivity(EYE * np.float32(1e9), np.array([0, 0, 2e9, 6e9], np.float32)))
    found = load_sensitivity(bundle)
    assert found is not None
    assert found.patches is not None
    np.testing.assert_array_equal(found.directions, EYE)
    np.testing.assert_array_equal(found.patches, [0, 0, 1, 3])
    save_sensitivity(tmp_path, Sensitivity(EYE))
    without = load_sensitivity(bundle)
    assert without is not None
    assert without.patches is None


def test_a_bundle_from_before_has_none_and_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, "edge", make_spec(embed_dim=6))
    assert load_sensitivity(bundle) is None
    save_sensitivity(tmp_path, Sensitivity(EYE))
    with pytest.raises(BundleError, match=r"expected finite float16 \(8, 8\)"):
        load_sensitivity(dataclasses.replace(bundle, spec=make_spec(embed_dim=8)))
    (tmp_path / SENSITIVITY_FILE).write_bytes(b"nothing")
    with pytest.raises(BundleError, match="can't be read"):
        load_sensitivity(bundle)


@pytest.mark.parametrize(
    ("stored", "match"),
    [
        (np.ones(5, np.float32), "expected finite float32"),
        (np.array([1, 1, np.nan, 1], np.float32), "expected finite float32"),
        (np.array([1, 1, -1, 1], np.float32), "below zero"),
        (np.zeros(4, np.float32), "none above"),
    ],
)
def test_patches_that_can_not_be_weights_are_named(tmp_path: Path, stored: FloatArray, match: str) -> None:
    save_sensitivity(tmp_path, Sensitivity(EYE))
    np.save(tmp_path / PATCHES_FILE, stored)
    with pytest.raises(BundleError, match=match):
        load_sensitivity(Bundle(tmp_path, "edge", make_spec(embed_dim=6, patches=4)))
