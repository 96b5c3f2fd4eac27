"""The codec tables in a bundle are the ones that the fingerprint names, or a BundleError says what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from splitvla_shared.bundle import Bundle
from splitvla_shared.codec.bundled import CODEC_FILE, read_tables
from splitvla_shared.errors import BundleError
from tests.codec_tables import COLUMNS, ROWS, formula_tables
from tests.specs import make_spec

TABLES = formula_tables()


def bundle(path: Path, **changes: object) -> Bundle:
    (path / CODEC_FILE).write_bytes(TABLES.to_bytes())
    fields = {"patches": ROWS, "embed_dim": COLUMNS, "codec_sha256": TABLES.sha256}
    return Bundle(path, "edge", make_spec(**(fields | changes)))


def test_a_calibrated_bundle_gives_its_tables(tmp_path: Path) -> None:
    tables = read_tables(bundle(tmp_path))
    assert tables is not None
    assert tables.sha256 == TABLES.sha256


def test_a_bundle_that_was_never_calibrated_has_none_whatever_lies_in_its_folder(tmp_path: Path) -> None:
    assert read_tables(bundle(tmp_path, codec_sha256="")) is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    whole = bundle(tmp_path)
    (tmp_path / CODEC_FILE).unlink()
    with pytest.raises(BundleError, match=r"codec\.npz: No such file"):
        read_tables(whole)


def test_another_calibration_is_refused(tmp_path: Path) -> None:
    whole = bundle(tmp_path)
    (tmp_path / CODEC_FILE).write_bytes(formula_tables((0.5,)).to_bytes())
    with pytest.raises(BundleError, match=f"spec.json says {TABLES.sha256[:12]}"):
        read_tables(whole)


def test_tables_of_another_shape_are_refused(tmp_path: Path) -> None:
    whole = bundle(tmp_path)
    other = dataclasses.replace(whole, spec=dataclasses.replace(whole.spec, patches=ROWS + 1).sealed())
    with pytest.raises(BundleError, match=r"embeddings of \(16, 12\), this model's are \(17, 12\)"):
        read_tables(other)
