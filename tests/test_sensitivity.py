"""What the first layer makes of an error: measured at split, kept beside the encoder, read by calibration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.codec.sensitivity import SENSITIVITY_FILE, load_sensitivity, save_sensitivity
from splitvla_shared.errors import BundleError
from tests.specs import make_spec


def test_it_is_what_keys_and_values_behind_the_norm_make_of_an_error(tiny_bundles: Path) -> None:
    matrix = load_sensitivity(open_bundle(tiny_bundles / "edge", "edge"))
    assert matrix is not None
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
    save_sensitivity(tmp_path, np.eye(6, dtype=np.float32) * 1e9)
    matrix = load_sensitivity(Bundle(tmp_path, "edge", make_spec(embed_dim=6)))
    np.testing.assert_array_equal(matrix, np.eye(6))


def test_a_bundle_from_before_has_none_and_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, "edge", make_spec(embed_dim=6))
    assert load_sensitivity(bundle) is None
    save_sensitivity(tmp_path, np.eye(6, dtype=np.float32))
    with pytest.raises(BundleError, match=r"expected finite float16 \(8, 8\)"):
        load_sensitivity(dataclasses.replace(bundle, spec=make_spec(embed_dim=8)))
    (tmp_path / SENSITIVITY_FILE).write_bytes(b"nothing")
    with pytest.raises(BundleError, match="can't be read"):
        load_sensitivity(bundle)
