"""`splitvla-edge calibrate` as a user runs it: both halves get one codec, and whatever is wrong is one line."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from splitvla_cloud.__main__ import main as cloud_main
from splitvla_edge.__main__ import main
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.model import read_ladder
from splitvla_shared.bundle import open_bundle, write_manifest
from splitvla_shared.codec.bundled import CODEC_FILE, read_tables
from splitvla_shared.codec.sensitivity import SENSITIVITY_FILE
from splitvla_shared.codec.transform import Binding, TransformCodec
from splitvla_shared.nouns import Scheme
from splitvla_shared.replaced import exchange
from splitvla_shared.rungs import read_costs
from tests.test_calibration_frames import CLIP, write_images


@pytest.fixture
def bundles(tiny_bundles: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundles, tmp_path / "bundles"))


def run(bundles: Path, *options: str | Path, frames: Sequence[Path] = (CLIP,)) -> int:
    command = ["calibrate", "--bundle", bundles / "edge", "--frames", *frames, "--max-frames", "32", "--threads", "1"]
    return main([str(part) for part in (*command, *options)])


def test_both_halves_get_the_same_codec_and_its_costs_fall_from_rung_to_rung(
    bundles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundles, "--cloud-bundle", bundles / "cloud", "--columns", "32", "--plot", bundles / "codec.png") == 0
    said = capsys.readouterr().out
    edge, cloud = open_bundle(bundles / "edge", "edge"), open_bundle(bundles / "cloud", "cloud")
    assert edge.spec == cloud.spec
    assert (bundles / "edge" / CODEC_FILE).read_bytes() == (bundles / "cloud" / CODEC_FILE).read_bytes()
    assert edge.spec.fingerprint[:16] in said
    assert "weighted by what the backbone reacts to" in said
    assert "carry over" not in said
    assert (bundles / "codec.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in bundles.iterdir()) == ["cloud", "codec.png", "edge"]

    tables, ladder = read_ladder(edge, Scheme.BF16)
    assert tables is not None
    assert tables.columns <= 32
    assert ladder[0].name == "exact"
    assert [rung.codec_rung for rung in ladder if rung.codec_rung is not None] == list(range(len(tables.rungs)))
    costs = {cost.name: cost for cost in read_costs(edge.extra)}
    assert {"bf16", "bf16_zstd", "int8", "int4", *(rung.name for rung in tables.rungs)} == set(costs)
    assert all(cost.seen_db is not None for cost in costs.values())
    assert costs[tables.rungs[0].name].sqnr_db > costs[tables.rungs[-1].name].sqnr_db

    # What the robot's encoder gives crosses the codec, and is about the embedding that it stands for.
    encoder, codec = OnnxEncoder(edge, 1, tables=tables), TransformCodec(tables)
    image = np.full((224, 224, 3), 128, np.uint8)
    coded = codec.encode(encoder.coefficients(image), 0, Binding(1, 1))
    found = codec.reconstruct(codec.decode(coded.data, Scheme.KLT, Binding(1, 1)))
    patches = encoder.embed(image)
    assert np.linalg.norm(found - patches) < 0.5 * np.linalg.norm(patches - tables.mean)


def test_a_cloud_half_elsewhere_gets_it_from_the_file_that_is_named(
    bundles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundles, "--plain", "--parcel", bundles / "a.parcel", "--columns", "16") == 0
    said = capsys.readouterr().out
    assert f"carry over {bundles / 'a.parcel'}" in said
    assert "splitvla-cloud adopt-codec" in said
    assert "by energy alone" in said
    edge = open_bundle(bundles / "edge", "edge")
    assert open_bundle(bundles / "cloud", "cloud").spec.fingerprint != edge.spec.fingerprint
    assert cloud_main(["adopt-codec", "--bundle", str(bundles / "cloud"), str(bundles / "a.parcel")]) == 0
    cloud = open_bundle(bundles / "cloud", "cloud")
    assert cloud.spec == edge.spec
    assert read_tables(cloud) is not None


def test_a_cloud_half_of_another_width_is_refused(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cloud = open_bundle(bundles / "cloud", "cloud")
    write_manifest(cloud.path, "cloud", dataclasses.replace(cloud.spec, embed_dim=64).sealed(), cloud.extra)
    assert run(bundles, "--cloud-bundle", cloud.path) == 3
    assert "another model than was calibrated: embed_dim: 64 here, 128 there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--bundle", "{bundles}/cloud"], 3, "cloud half of a model; here the edge half is needed"),
        (["--bundle", "{bundles}"], 3, "did you mean {bundles}/edge?"),
        (["--cloud-bundle", "{bundles}/edge"], 3, "edge half of a model; here the cloud half is needed"),
        (
            ["--cloud-bundle", "{bundles}/cloud", "--parcel", "a"],
            2,
            "--parcel is for a cloud bundle on another machine",
        ),
        (["--parcel", "{bundles}/edge/spec.json"], 2, "is there already; name another file"),
        (["--plot", "{bundles}/edge/spec.json"], 2, "is there already; name another file"),
        (["--plot", "{bundles}/nowhere/a.png"], 2, "there is no such folder"),
        (["--columns", "0"], 2, "columns 0"),
        (["--hz", "nan"], 2, "hz nan"),
        (["--parcel", "{bundles}/nowhere/a"], 3, "nowhere is not there or can't be written"),
        (["--camera-transform", "mirror"], 2, "unknown camera transform 'mirror'"),
        (["--frames", "{bundles}/nowhere"], 2, "nowhere is not there"),
        (["--frames", "{few}"], 2, "holds 9 frames at 5 a second; at least 16 are needed"),
        (["--frames", "{still}"], 2, "only 3 of 20 frames differ from the one before; record a robot that moves"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_changed(
    bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, reason: str
) -> None:
    few, still = write_images(tmp_path / "few", 9), write_images(tmp_path / "still", 20, still=True)
    places = {"bundles": bundles, "few": few, "still": still}
    before = {file: file.read_bytes() for file in bundles.rglob("*") if file.is_file()}
    assert run(bundles, *[option.format(**places) for option in options]) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert reason.format(**places) in said
    assert {file: file.read_bytes() for file in bundles.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("failing", "reason"),
    [
        ([1], "can't replace {bundles}/edge: No space left on device; both halves are as they were"),
        ([2], "can't replace {bundles}/cloud: No space left on device; both halves are as they were"),
        ([2, 3], "{bundles}/edge holds the new codec and {bundles}/cloud does not; calibrate again"),
    ],
)
def test_a_half_that_can_not_be_replaced_leaves_both_as_they_were_or_says_that_it_did_not(
    bundles: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    failing: list[int],
    reason: str,
) -> None:
    calls: list[Path] = []

    def full_disk(whole: Path, folder: Path) -> None:
        calls.append(folder)
        if len(calls) in failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        exchange(whole, folder)

    monkeypatch.setattr("splitvla_edge.calibrate.command.exchange", full_disk)
    before = {file: file.read_bytes() for file in bundles.rglob("*") if file.is_file()}
    assert run(bundles, "--cloud-bundle", bundles / "cloud", "--plain", "--columns", "8") == 3
    assert reason.format(bundles=bundles) in capsys.readouterr().err.strip().splitlines()[-1]
    unchanged = {file: file.read_bytes() for file in bundles.rglob("*") if file.is_file()} == before
    assert unchanged == (failing != [2, 3])


def test_a_plot_without_matplotlib_is_refused_before_the_work(
    bundles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(bundles, "--plot", bundles / "a.png") == 2
    assert "pip install matplotlib" in capsys.readouterr().err


def test_weights_that_the_bundle_does_not_have_are_not_made_up(
    bundles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edge = open_bundle(bundles / "edge", "edge")
    (edge.path / SENSITIVITY_FILE).unlink()
    write_manifest(edge.path, "edge", edge.spec, edge.extra)
    assert run(bundles, "--weighted") == 2
    assert "has no sensitivity.npy; split again with this version, or use --plain" in capsys.readouterr().err
