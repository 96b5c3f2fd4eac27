"""The codec tables in a bundle are the ones that the fingerprint names, or a BundleError says what to do."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitvla_shared.bundle import Bundle
from splitvla_shared.codec.bundled import CODEC_FILE, read_tables
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.errors import BundleError
from tests.codec_tables import COLUMNS, ROWS, formula_tables
from tests.specs import make_spec

TABLES = formula_tables()
DATA = TABLES.to_bytes()
_DIRECTORY = zipfile.ZipFile(io.BytesIO(DATA)).start_dir


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


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(-len(DATA), 999), st.integers(0, 255)), min_size=1, max_size=3), st.booleans())
def test_whatever_the_file_holds_it_is_tables_or_a_bundle_error(
    changes: list[tuple[int, int]], in_the_directory: bool
) -> None:
    data = bytearray(DATA)
    for place, value in changes:
        at = _DIRECTORY + place % (len(DATA) - _DIRECTORY) if in_the_directory else place
        data[at] = value
    try:
        tables = CodecTables.from_bytes(bytes(data))
    except BundleError:
        return
    assert tables.shape == (ROWS, COLUMNS)
