"""What answers react to: the gradients' directions and patches, and the command that puts them beside the encoder."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from splitvla_cloud.__main__ import main
from splitvla_cloud.answer_sensitivity import Answered, answer_sensitivity
from splitvla_edge.calibrate.command import CalibrateRequest, calibrate
from splitvla_shared.bundle import open_bundle
from splitvla_shared.codec.bundled import read_tables
from splitvla_shared.codec.sensitivity import load_sensitivity
from tests.specs import stored_as
from tests.test_calibration_frames import CLIP, write_images

DIM, PATCHES, ANSWER = 4, 9, 3


class Reacting(torch.nn.Module):
    """Says token 1 the more, the larger channel 2 of patch 4 is, and looks at nothing else."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(8, DIM)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.words

    def forward(self, inputs_embeds: torch.Tensor, use_cache: bool, logits_to_keep: int) -> Any:
        assert inputs_embeds.shape == (1, 2 + PATCHES + ANSWER - 1, DIM)  # BOS, patches, prompt, all ids but the last
        said = torch.zeros(1, logits_to_keep, 8)
        said[:, :, 1] = inputs_embeds[0, 1 + 4, 2]
        return SimpleNamespace(logits=said)


def test_only_what_the_answer_depends_on_counts_and_its_neighbours_in_the_picture() -> None:
    patches = np.zeros((PATCHES, DIM), np.float32)
    found = answer_sensitivity(Reacting(), [Answered((0, 5), patches, (1, 1, 1))] * 5)
    expected = np.zeros((DIM, DIM))
    expected[2, 2] = found.directions[2, 2]
    assert expected[2, 2] > 0
    np.testing.assert_array_equal(found.directions, expected)
    assert found.patches is not None
    np.testing.assert_allclose(found.patches, found.patches[4])  # of 3 x 3 patches all are neighbours of the middle


def test_it_is_written_beside_the_encoder_and_calibration_sends_those_patches_finer(
    tiny_bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundles = Path(shutil.copytree(tiny_bundles, tmp_path / "bundles"))
    before = open_bundle(bundles / "edge", "edge")
    write_images(tmp_path / "images", 2)
    command = ["measure-sensitivity", "--bundles", str(bundles), "--frames", str(tmp_path / "images")]
    assert main([*command, "--instruction", "pick up the can", "--device", "cpu"]) == 0
    assert "run `splitvla-edge calibrate`" in capsys.readouterr().out
    edge = open_bundle(bundles / "edge", "edge")
    assert edge.spec == before.spec
    found = load_sensitivity(edge)
    assert found is not None
    assert found.patches is not None
    assert found.patches.mean() == pytest.approx(1, abs=1e-4)

    calibrate(
        CalibrateRequest(bundles / "edge", (CLIP,), bundles / "cloud", columns=64, most_frames=24, threads=1),
        lambda stage, done, total: None,
    )
    tables = read_tables(open_bundle(bundles / "cloud", "cloud"))
    assert tables is not None
    assert tables.patch_weights is not None
    assert tables.patch_weights.argmax() == found.patches.argmax()
    assert tables.patch_weights.max() > 1


@pytest.mark.parametrize(
    "place", ["splitvla_cloud.answer_sensitivity.Backbone", "splitvla_cloud.answer_sensitivity._gradients"]
)
@pytest.mark.parametrize(("precision", "remedy"), [("fp32", "--precision bf16"), ("bf16", "more memory")])
def test_a_device_that_is_too_small_is_told_with_a_precision_that_the_command_takes(
    tiny_bundles: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    precision: str,
    remedy: str,
) -> None:
    def scarce(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.29 GiB.\nSee the documentation")

    monkeypatch.setattr(place, scarce)
    images = write_images(tmp_path / "images", 2)
    command = ["measure-sensitivity", "--bundles", str(tiny_bundles), "--frames", str(images), "--instruction", "go"]
    assert main([*command, "--precision", precision, "--device", "cpu"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{precision} does not fit cpu (CUDA out of memory" in last
    assert remedy in last
    assert "int8" not in last


@pytest.mark.parametrize(
    ("command", "module"), [("measure-sensitivity", "answer_sensitivity"), ("measure-codec", "codec_agreement")]
)
def test_a_device_that_is_not_here_is_named_before_any_frame_is_embedded(
    tiny_bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, module: str
) -> None:
    def embed(*given: object) -> None:
        raise AssertionError("a frame was embedded first")

    monkeypatch.setattr(f"splitvla_cloud.{module}.embedded", embed)
    monkeypatch.setattr("splitvla_cloud.codec_agreement.read_tables", lambda edge: object())
    monkeypatch.setattr("splitvla_cloud.codec_agreement.read_costs", lambda extra: [object()])
    options = ["--bundles", str(tiny_bundles), "--frames", str(tmp_path), "--instruction", "go"]
    assert main([command, *options, "--device", "cuda:99"]) == 2


@pytest.mark.parametrize("command", ["measure-sensitivity", "measure-codec"])
def test_a_bundle_that_can_not_be_replaced_is_named_before_anything_is_measured(
    tiny_bundles: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """A container's volume: a rename over it fails, when all is done."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "edge")
    options = ["--bundles", str(tiny_bundles), "--frames", "nowhere", "--instruction", "go"]
    assert main([command, *options]) == 3
    assert "edge is a mount, which can't be replaced as a whole; mount the folder above it" in capsys.readouterr().err


def test_a_backbone_that_is_stored_quantised_is_named_with_the_remedy(
    tiny_bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundles = stored_as("int8", tiny_bundles, tmp_path / "bundles")
    images = write_images(tmp_path / "images", 2)
    command = ["measure-sensitivity", "--bundles", str(bundles), "--frames", str(images), "--instruction", "go"]
    assert main(command) == 2
    assert "which has no gradients; split without --precision" in capsys.readouterr().err
