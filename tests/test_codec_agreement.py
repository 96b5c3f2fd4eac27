"""How many action tokens each rung keeps: measured with both halves, kept in the edge bundle, used by its ladder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from splitvla_cloud.__main__ import main
from splitvla_edge.model import read_ladder
from splitvla_edge.robots.replay import open_source
from splitvla_shared.bundle import open_bundle
from splitvla_shared.nouns import Scheme
from splitvla_shared.rungs import read_costs
from tests.test_calibration_frames import CLIP, write_images


def test_it_is_written_into_the_ladder_and_the_fingerprint_stays(
    calibrated_bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    bundles = Path(shutil.copytree(calibrated_bundles, tmp_path / "bundles"))
    before = open_bundle(bundles / "edge", "edge")
    assert all(rung.agreement is None for rung in read_ladder(before, Scheme.BF16)[1][1:])
    source = open_source(CLIP)
    (tmp_path / "images").mkdir()
    for index in (3, 13):
        Image.fromarray(source.read(index)).save(tmp_path / "images" / f"{index}.png")
    source.close()

    command = ["measure-codec", "--bundles", str(bundles), "--frames", str(tmp_path / "images"), "--device", "cpu"]
    assert main([*command, "--instruction", "pick up the can"]) == 0
    assert "100.00%" in capsys.readouterr().out
    after = open_bundle(bundles / "edge", "edge")
    assert after.spec == before.spec
    found = {cost.name: cost.agreement for cost in read_costs(after.extra)}
    assert (found["bf16"], found["bf16_zstd"]) == (1.0, 1.0)
    assert all(share is not None and 0 <= share <= 1 for share in found.values())
    ladder = read_ladder(after, Scheme.BF16)[1]
    assert [rung.agreement for rung in ladder if rung.name == "db36"] == [found["db36"]]


def test_halves_without_a_codec_and_a_folder_without_images_are_named(
    tiny_bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 2)
    assert main(["measure-codec", "--bundles", str(tiny_bundles), "--frames", str(images)]) == 3
    assert "has no codec; run `splitvla-edge calibrate` first" in capsys.readouterr().err
