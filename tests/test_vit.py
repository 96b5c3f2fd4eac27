"""The encoder in torch against the public reference implementation's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.split.encoder_export import load_edge_model
from splitvla_cloud.split.geometry import vision_shapes
from splitvla_cloud.split.vit import EdgeModel

# Measured 1.3e-5 on values up to 15: the order of summation of another build of torch, and nothing else.
TOLERANCE = 5e-5


def square(image: npt.NDArray[np.uint8]) -> torch.Tensor:
    """The reference's resize, uint8 (1, 224, 224, 3)."""
    return torch.from_numpy(np.array(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))[None])


@pytest.fixture(scope="module")
def golden(reference_checkpoint: Path) -> Any:
    with np.load(reference_checkpoint / "golden.npz") as file:
        return {name: file[name] for name in file.files if not name.startswith("bf16")}


@pytest.fixture(scope="module")
def model(reference_checkpoint: Path) -> EdgeModel:
    source = Checkpoint.open(reference_checkpoint)
    return load_edge_model(source.vision, source.vision_tensors)


def test_pixels_are_normalised_bit_for_bit_as_the_reference_does(golden: Any, model: EdgeModel) -> None:
    for index, name in enumerate(golden["image_names"]):
        image = square(golden[f"image/{name}"])
        pixels = torch.cat([normalize(image) for normalize in model.normalizers], dim=1)[0].numpy()
        np.testing.assert_array_equal(pixels, golden["pixel_values"][index])


def test_both_towers_give_the_reference_features(golden: Any, model: EdgeModel) -> None:
    for row, index in enumerate(golden["tower_out_image_index"]):
        image = square(golden[f"image/{golden['image_names'][index]}"])
        with torch.no_grad():
            dino, siglip = model.features(image)
        np.testing.assert_allclose(dino[0].numpy(), golden["fp32/featurizer_out"][row], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(siglip[0].numpy(), golden["fp32/fused_featurizer_out"][row], atol=TOLERANCE, rtol=0)


def test_projected_patches_are_the_references(golden: Any, model: EdgeModel) -> None:
    for index, name in enumerate(golden["image_names"]):
        with torch.no_grad():
            patches = model(square(golden[f"image/{name}"]))
        assert patches.dtype == torch.float32
        np.testing.assert_allclose(patches[0].numpy(), golden["fp32/projected"][index], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("layout", ["fused", "siglip-v01"])
def test_parameter_names_are_those_of_the_checkpoint(tmp_path: Path, layout: Any) -> None:
    from benchmarks.tiny_checkpoint import write_tiny_checkpoint

    write_tiny_checkpoint(tmp_path / "tiny", layout=layout)
    vision = Checkpoint.open(tmp_path / "tiny").vision
    with torch.device("meta"):
        state = EdgeModel(vision).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == vision_shapes(vision)
