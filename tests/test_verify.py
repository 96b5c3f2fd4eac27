"""`verify`: right bundles pass, a wrong one is stopped at the stage that is wrong, a blind model is refused."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from safetensors.torch import load_file, save_file

from benchmarks.tiny_checkpoint import write_tiny_checkpoint
from splitvla_cloud.__main__ import main
from splitvla_cloud.backbone import Backbone
from splitvla_cloud.split import Checkpoint, split
from splitvla_cloud.verify import VerifyRequest, render_rows, verify
from splitvla_cloud.verify.frames import built_in_frames, read_frames
from splitvla_cloud.verify.table import close_numbers, same_numbers
from splitvla_cloud.verify.unsplit import UnsplitBackbone, square
from splitvla_shared.errors import BundleError, ConfigError, ObservationError
from splitvla_shared.preprocess.images import to_square
from splitvla_shared.spec import Resize
from tests.specs import stored_as

STAGES = [
    *("bundles", "pixels", "tower featurizer", "tower fused_featurizer", "projected"),
    *("prompt ids", "tokens", "actions", "black vs white"),
]


def _changed(checkpoint: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of the checkpoint with other weights."""
    shutil.copytree(checkpoint, out)
    weights = load_file(out / "model.safetensors")
    change(weights)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_the_bundles_of_a_checkpoint_pass_every_stage(
    tiny_checkpoint: Path, tiny_bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PillowImage.fromarray(built_in_frames()[-1].image[:120, :99]).save(tmp_path / "odd.png")
    options = [str(tiny_checkpoint), "--bundles", str(tiny_bundles), "--frames", str(tmp_path)]
    assert main(["verify", *options, "--precisions", "bf16,nf4", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[2:11]] == STAGES
    assert all(line.endswith("PASS") for line in lines[2:11])
    assert "6 frames" in lines[3]
    assert [line.split("  ")[0] for line in lines[14:]] == ["unsplit bf16", "split bf16", "split nf4"]


def test_the_reference_checkpoint_passes(reference_checkpoint: Path, reference_bundles: Path) -> None:
    found = verify(VerifyRequest(reference_checkpoint, reference_bundles, unnorm_key="tiny_bridge_orig", device="cpu"))
    found.check()
    assert [row.stage for row in found.rows] == STAGES


def test_a_reduced_precision_is_judged_by_how_far_it_is_behind(tiny_checkpoint: Path, tiny_bundles: Path) -> None:
    found = verify(VerifyRequest(tiny_checkpoint, tiny_bundles, precision="int8", device="cpu"))
    found.check()
    tokens = found.rows[STAGES.index("tokens")]
    assert "int8" in tokens.compared
    assert "std behind unsplit bf16" in tokens.worst


def test_one_model_is_in_memory_at_a_time(
    tiny_checkpoint: Path, tiny_bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of a 7B's backbones would not fit the machine that one was chosen for."""
    loaded: list[weakref.ref[Any]] = []
    load, read = Backbone.load, UnsplitBackbone.__init__

    def alone() -> None:
        assert not [one for one in loaded if one() is not None]

    def load_alone(*arguments: Any, **options: Any) -> Backbone:
        alone()
        backbone = load(*arguments, **options)
        loaded.append(weakref.ref(backbone))
        return backbone

    def read_alone(self: UnsplitBackbone, *arguments: Any) -> None:
        alone()
        read(self, *arguments)
        loaded.append(weakref.ref(self))

    monkeypatch.setattr(Backbone, "load", load_alone)
    monkeypatch.setattr(UnsplitBackbone, "__init__", read_alone)
    request = VerifyRequest(tiny_checkpoint, tiny_bundles, precisions=("fp32", "int8"), device="cpu")
    gc.disable()  # what a cycle holds is not to be freed by luck
    try:
        assert verify(request).agreement.count("\nsplit ") == 2
    finally:
        gc.enable()
    assert len(loaded) == 6


def test_the_single_tower_layout_passes(tmp_path: Path) -> None:
    """Letterboxed, with the other prompt and a projector of two layers."""
    write_tiny_checkpoint(tmp_path / "v01", layout="siglip-v01")
    split(tmp_path / "v01", tmp_path / "out")
    found = verify(VerifyRequest(tmp_path / "v01", tmp_path / "out", device="cpu"))
    found.check()
    assert [row.stage for row in found.rows] == [stage for stage in STAGES if "fused" not in stage]


def _statistics(path: Path) -> None:
    file = path / "dataset_statistics.json"
    data = json.loads(file.read_text())
    data["widowx_tiny"]["action"]["q99"][0] += 0.001
    file.write_text(json.dumps(data))


def _scaled(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[name] = weights[name] * 1.5

    return change


@pytest.mark.parametrize(
    ("tensor", "stage"),
    [
        ("vision_backbone.fused_featurizer.blocks.1.mlp.fc2.weight", "tower fused_featurizer"),
        ("projector.fc3.bias", "projected"),
        ("language_model.model.layers.1.mlp.down_proj.weight", "tokens"),
    ],
)
def test_a_weight_that_is_another_one_is_found_in_its_stage(
    tiny_checkpoint: Path, tiny_bundles: Path, tmp_path: Path, tensor: str, stage: str
) -> None:
    other = _changed(tiny_checkpoint, tmp_path / "other", _scaled(tensor))
    found = verify(VerifyRequest(other, tiny_bundles, device="cpu"))
    assert [row.stage for row in found.rows] == STAGES[: STAGES.index(stage) + 1]
    assert [row.passed for row in found.rows] == [True] * STAGES.index(stage) + [False]
    with pytest.raises(BundleError, match=f"stage '{stage}' differs: "):
        found.check()


def test_other_statistics_end_with_an_error_code_and_the_table(
    tiny_checkpoint: Path, tiny_bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "other")
    _statistics(tmp_path / "other")
    assert main(["verify", str(tmp_path / "other"), "--bundles", str(tiny_bundles), "--device", "cpu"]) == 3
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].endswith("FAIL")
    assert "stage 'bundles' differs: the action statistics are not the checkpoint's" in err.splitlines()[-1]


def test_another_way_to_a_square_is_found(tiny_checkpoint: Path, tiny_bundles: Path, tmp_path: Path) -> None:
    """The bundle says how the robot resizes; no pixel, weight or token that is compared shows it."""
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "letterbox"))
    file = other / "preprocessor_config.json"
    changed = {"image_resize_strategy": "letterbox", "tvf_do_letterbox": True}
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    rows = verify(VerifyRequest(other, tiny_bundles, device="cpu")).rows
    assert [row.passed for row in rows] == [False]
    assert "become square in another way" in rows[0].worst


def test_a_model_that_does_not_see_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A projector of zeros: every stage agrees with the checkpoint, and the robot would move all the same."""

    def blinded(weights: dict[str, torch.Tensor]) -> None:
        weights["projector.fc3.weight"] = torch.zeros_like(weights["projector.fc3.weight"])

    blind = _changed(tiny_checkpoint, tmp_path / "blind", blinded)
    split(blind, tmp_path / "out")
    found = verify(VerifyRequest(blind, tmp_path / "out", device="cpu"))
    assert [row.stage for row in found.rows if not row.passed] == ["black vs white"]
    with pytest.raises(BundleError, match="blind: a black and a white image give the same tokens"):
        found.check()


@pytest.mark.parametrize("shape", [(224, 224), (480, 640), (180, 321), (99, 120), (640, 480), (225, 224), (31, 500)])
@pytest.mark.parametrize("resize", list(Resize))
def test_the_robots_resize_is_the_one_that_verify_uses(
    tiny_checkpoint: Path, shape: tuple[int, int], resize: Resize
) -> None:
    """Two implementations of one source: this is what `verify` can't see for itself."""
    fill = (122, 116, 104)
    vision = dataclasses.replace(Checkpoint.open(tiny_checkpoint).vision, resize=resize, letterbox_fill=fill)
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    assert np.array_equal(square(image, vision), to_square(image, 224, resize, fill))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--unnorm-key", "widowx"], "unknown unnorm key 'widowx'; this model has: so100_tiny, widowx_tiny"),
        (["--precision", "bf16"], "holds weights that `split --precision nf4` quantised; use precision nf4"),
        (["--device", "cuda:99"], "device 'cuda:99'"),
        (["--precision", "nf4", "--device", "tpu"], "device 'tpu'"),
    ],
)
def test_wrong_options_are_named_before_any_model_runs(
    tiny_checkpoint: Path,
    tiny_bundles: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    reason: str,
) -> None:
    bundles = stored_as("nf4", tiny_bundles, tmp_path / "bundles")

    def run(*given: object) -> None:
        raise AssertionError("a model ran first")

    monkeypatch.setattr("splitvla_cloud.verify.UnsplitEncoder", run)
    assert main(["verify", str(tiny_checkpoint), "--bundles", str(bundles), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_frames_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ObservationError, match="is no folder"):
        read_frames(tmp_path / "absent")
    with pytest.raises(ObservationError, match="holds no image"):
        read_frames(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ObservationError, match=r"a\.png"):
        read_frames(tmp_path)


def test_a_precision_that_is_none_is_refused() -> None:
    from splitvla_cloud.precision import parse_precisions

    assert parse_precisions("nf4, fp32") == ("fp32", "nf4")
    with pytest.raises(ConfigError, match="fp4"):
        parse_precisions("fp32,fp4")


def _numbers(*values: float) -> Any:
    return np.array([values], dtype=np.float32)


def test_rows_fail_on_nan_other_shapes_and_a_last_bit() -> None:
    one = _numbers(1.0, 2.0)
    assert close_numbers("x", "", [(one, one * np.float32(1.000001))]).passed
    assert not close_numbers("x", "", [(one, one * np.float32(1.1))]).passed
    assert not close_numbers("x", "", [(one, _numbers(1.0, np.nan))]).passed
    assert not close_numbers("x", "", [(one, _numbers(1.0, 2.0, 3.0))]).passed
    assert not same_numbers("x", "", [(one, np.nextafter(one, 9, dtype=np.float32))]).passed
    assert "FAIL" in render_rows([same_numbers("x", "", [(one, -one)])])
