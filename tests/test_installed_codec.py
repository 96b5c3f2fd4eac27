"""A codec in a bundle: whole whenever the process dies, under a new fingerprint, and carried to the other machine."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from splitvla_cloud.__main__ import main
from splitvla_edge.model import check_same_model
from splitvla_shared import replaced
from splitvla_shared.bundle import open_bundle, write_manifest
from splitvla_shared.codec.bundled import CODEC_FILE, read_tables
from splitvla_shared.codec.installed import Parcel, calibrated, install, same_model
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.errors import BundleError, SpecMismatch
from splitvla_shared.spec import ModelSpec
from tests.codec_tables import COLUMNS, ROWS, formula_tables
from tests.specs import make_spec

SPEC = make_spec(patches=ROWS, embed_dim=COLUMNS)


def write_bundle(folder: Path, spec: ModelSpec = SPEC) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "deeper").mkdir()
    (folder / "deeper" / "config.json").write_text("{}")
    write_manifest(folder, "cloud", spec, {"precision": "int8"})
    return folder


def parcel_of(tables: CodecTables, spec: ModelSpec = SPEC) -> Parcel:
    return Parcel(tables.to_bytes(), calibrated(spec, tables))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_bundle_gets_the_tables_and_a_new_fingerprint_and_keeps_the_rest(tmp_path: Path) -> None:
    folder, tables = write_bundle(tmp_path / "cloud"), formula_tables()
    before = contents(folder)
    spec = install(folder, parcel_of(tables))
    opened = open_bundle(folder, "cloud")
    assert opened.spec == spec
    assert spec.fingerprint != SPEC.fingerprint
    assert spec.codec_sha256 == tables.sha256
    assert opened.extra == {"precision": "int8"}
    found = read_tables(opened)
    assert found is not None
    assert found.sha256 == tables.sha256
    after = contents(folder)
    assert {name for name in after if after[name] != before.get(name)} == {CODEC_FILE, "spec.json"}
    assert [file.name for file in tmp_path.iterdir()] == ["cloud"]


def test_another_calibration_replaces_it_under_another_fingerprint(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "cloud")
    first = install(folder, parcel_of(formula_tables((0.25, 1.0))))
    second = install(folder, parcel_of(formula_tables((0.5, 2.0))))
    assert len({SPEC.fingerprint, first.fingerprint, second.fingerprint}) == 3
    tables = read_tables(open_bundle(folder, "cloud"))
    assert tables is not None
    assert [rung.name for rung in tables.rungs] == ["step0.5", "step2"]


def test_a_robot_with_the_old_fingerprint_is_told_that_the_codec_differs() -> None:
    new = calibrated(SPEC, formula_tables())
    assert same_model(SPEC, new) == []
    with pytest.raises(
        SpecMismatch, match=r"codec_sha256: '' here, '[0-9a-f]{64}' there; give both the same calibration"
    ):
        check_same_model(SPEC, new)


_DYING = """
import os, sys
from pathlib import Path
from splitvla_shared.codec import installed
name, folder, parcel = sys.argv[1:]
def die(*_, **__):
    os._exit(9)
real = installed.exchange
def after(*parts):
    real(*parts)
    os._exit(9)
setattr(installed, name.removesuffix("+"), after if name.endswith("+") else die)
installed.install(Path(folder), installed.Parcel.read(Path(parcel)))
"""


@pytest.mark.parametrize(
    ("dies_in", "codec"),
    [("write_new", False), ("write_manifest", False), ("settle", False), ("exchange", False), ("exchange+", True)],
)
def test_a_process_that_is_killed_leaves_the_old_bundle_or_the_new_one(
    tmp_path: Path, dies_in: str, codec: bool
) -> None:
    folder, parcel = write_bundle(tmp_path / "cloud"), tmp_path / "a.parcel"
    before = contents(folder)
    parcel_of(formula_tables()).write(parcel)
    died = subprocess.run([sys.executable, "-c", _DYING, dies_in, str(folder), str(parcel)], check=False)
    assert died.returncode == 9
    assert bool(open_bundle(folder, "cloud").spec.codec_sha256) is codec
    assert codec or contents(folder) == before
    install(folder, Parcel.read(parcel))  # and the next attempt goes through
    assert read_tables(open_bundle(folder, "cloud")) is not None


def test_a_disk_that_refuses_leaves_the_bundle_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bundle(tmp_path / "cloud")
    before = contents(folder)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("splitvla_shared.codec.installed.write_new", full)
    with pytest.raises(BundleError, match=r"can't replace .*No space left on device; it is as it was"):
        install(folder, parcel_of(formula_tables()))
    assert contents(folder) == before
    assert [file.name for file in tmp_path.iterdir()] == ["cloud"]


def test_a_file_system_without_exchange_gets_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bundle(tmp_path / "cloud")

    def unknown(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(replaced, "_exchange", unknown)
    install(folder, parcel_of(formula_tables()))
    assert read_tables(open_bundle(folder, "cloud")) is not None
    assert [file.name for file in tmp_path.iterdir()] == ["cloud"]


def test_files_that_stay_are_not_copied(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "cloud")
    number = (folder / "model.safetensors").stat().st_ino
    install(folder, parcel_of(formula_tables()))
    assert (folder / "model.safetensors").stat().st_ino == number


def test_a_bundle_behind_a_link_is_replaced_where_it_lies(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "disk" / "cloud")
    (tmp_path / "link").symlink_to(folder)
    install(tmp_path / "link", parcel_of(formula_tables()))
    assert (tmp_path / "link").is_symlink()
    assert read_tables(open_bundle(folder, "cloud")) is not None


def test_the_command_adopts_a_parcel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tables = write_bundle(tmp_path / "cloud"), formula_tables()
    parcel_of(tables).write(tmp_path / "codec.parcel")
    assert main(["adopt-codec", "--bundle", str(folder), str(tmp_path / "codec.parcel")]) == 0
    assert calibrated(SPEC, tables).fingerprint[:16] in capsys.readouterr().out
    assert read_tables(open_bundle(folder, "cloud")) is not None


def test_a_parcel_of_another_model_is_refused_by_what_differs(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "cloud")
    other = dataclasses.replace(SPEC, language_sha256="e" * 64).sealed()
    with pytest.raises(BundleError, match=r"another model than was calibrated: language_sha256: 'bbb"):
        install(folder, parcel_of(formula_tables(), other))


def test_what_is_no_parcel_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.parcel"
    for data in (b"", b"PK\x03\x04 nothing", b"x" * 100):
        file.write_bytes(data)
        with pytest.raises(BundleError, match="no codec parcel"):
            Parcel.read(file)
    with pytest.raises(BundleError, match=r"nowhere.*no codec parcel"):
        Parcel.read(tmp_path / "nowhere")
    os.truncate(file, (1 << 30) + 1)
    with pytest.raises(BundleError, match="too large"):
        Parcel.read(file)


def test_a_parcel_whose_tables_are_not_its_specs_is_refused(tmp_path: Path) -> None:
    swapped = Parcel(formula_tables((0.5,)).to_bytes(), calibrated(SPEC, formula_tables()))
    swapped.write(tmp_path / "a.parcel")
    with pytest.raises(BundleError, match="not those that its spec speaks of"):
        Parcel.read(tmp_path / "a.parcel")


def test_the_wrong_half_and_no_bundle_at_all_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    folder.mkdir()
    write_manifest(folder, "edge", SPEC)
    with pytest.raises(BundleError, match="the edge half of a model; here the cloud half is needed"):
        install(folder, parcel_of(formula_tables()))
    with pytest.raises(BundleError, match="is not a bundle"):
        install(tmp_path / "nowhere", parcel_of(formula_tables()))
