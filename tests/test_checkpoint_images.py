"""How a checkpoint's processor is read: as the public reference applies it, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_checkpoint import write_tiny_checkpoint
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_shared.errors import CheckpointError


def _edit(checkpoint: Path, **changes: Any) -> None:
    file = checkpoint / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_pixels_are_normalised_as_the_reference_does_it_and_not_as_means_and_stds_say(checkpoint: Path) -> None:
    """openvla-7b's own file has these numbers: 0.485, 0.456, 0.406 and so on, rounded to bfloat16."""
    dino = Checkpoint.open(checkpoint).vision.towers[0]
    assert (dino.mean, dino.std) == ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375))
    _edit(checkpoint, tvf_normalize_params=None)
    dino = Checkpoint.open(checkpoint).vision.towers[0]
    assert (dino.mean, dino.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_letterbox_pads_as_the_reference_does_it_and_not_as_means_say(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "old", layout="siglip-v01")
    _edit(tmp_path / "old", tvf_letterbox_fill=[1, 2, 3])
    assert Checkpoint.open(tmp_path / "old").vision.letterbox_fill == (1, 2, 3)
    _edit(tmp_path / "old", tvf_letterbox_fill=None, means=[[0.2, 0.4, 1.0]])
    assert Checkpoint.open(tmp_path / "old").vision.letterbox_fill == (51, 102, 255)
    _edit(tmp_path / "old", tvf_letterbox_fill=[1, 2, 256])
    with pytest.raises(CheckpointError, match="expected three values of 0 to 255"):
        Checkpoint.open(tmp_path / "old")


FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"means": [[0.5, 0.5, 0.5]], "tvf_normalize_params": None},
        "means is .*expected 2 lists of 3 numbers",
    ),
    (
        {"tvf_normalize_params": [{"mean": [0.5] * 3, "std": [0.5, 0.5, 0.0]}] * 2},
        "must be above zero",
    ),
    ({"interpolations": ["bilinear"] * 2}, "only bicubic"),
    ({"input_sizes": [[3, 224, 196]] * 2}, "one square"),
    ({"input_sizes": [[3, 384, 384]] * 2}, "has 256 rows, but images of 384 px"),
    ({"image_resize_strategy": "resize-crop"}, "image_resize_strategy 'resize-crop'"),
    ({"tvf_do_letterbox": True}, "tvf_do_letterbox is True, the other fields say False"),
    (
        {"tvf_normalize_params": [{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}]},
        "tvf_normalize_params: mean is .*expected 2 lists of 3 numbers",
    ),
    ({"tvf_normalize_params": [7, 7]}, "tvf_normalize_params: mean is .*expected 2 lists"),
    (
        {"tvf_resize_params": [{"size": [256, 256], "interpolation": 3}]},
        r"tvf_resize_params size is \[256, 256\], the other fields say \[224, 224\]",
    ),
    (
        {"tvf_resize_params": [{"size": [224, 224], "interpolation": 2}]},
        "tvf_resize_params interpolation is 2, the other fields say 3",
    ),
    ({"tvf_crop_params": [{"output_size": [196, 196]}]}, "tvf_crop_params output_size"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_processor_that_cannot_be_followed_is_refused(checkpoint: Path, change: dict[str, Any], message: str) -> None:
    _edit(checkpoint, **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(checkpoint)
    assert "\n" not in str(caught.value)


def test_the_processor_may_be_saved_as_transformers_5_saves_it(checkpoint: Path) -> None:
    before = Checkpoint.open(checkpoint).vision
    image_processor = json.loads((checkpoint / "preprocessor_config.json").read_text())
    (checkpoint / "preprocessor_config.json").unlink()
    processor = checkpoint / "processor_config.json"
    processor.write_text(json.dumps({"image_processor": image_processor, "processor_class": "PrismaticProcessor"}))
    assert Checkpoint.open(checkpoint).vision == before
    processor.write_text(json.dumps({"processor_class": "PrismaticProcessor"}))
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json is missing; copy it and tokenizer.json from"):
        Checkpoint.open(checkpoint)
