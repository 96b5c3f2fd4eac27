"""Bundles on disk: a whole one opens, and each kind of damage is named with its file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitvla_shared.bundle import FORMAT, MANIFEST, open_bundle, write_manifest
from splitvla_shared.errors import BundleError
from splitvla_shared.spec import ModelSpec, Resize


def spec() -> ModelSpec:
    return ModelSpec(
        "tiny", "a", "b", "c", "d", 256, 96, 224, Resize.NAIVE, 32000, 256, 7, 1, "{instruction}", 29871, 1
    ).sealed()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "edge"
    (path / "tokenizer").mkdir(parents=True)
    (path / "encoder.onnx").write_bytes(b"weights" * 1000)
    (path / "tokenizer" / "vocab.json").write_text("{}", encoding="utf-8")
    write_manifest(path, "edge", spec(), {"opset": 17})
    return path


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def refused(path: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        open_bundle(path, "edge")
    assert "\n" not in str(caught.value)


def test_a_whole_bundle_opens_with_its_spec_and_extra(bundle: Path) -> None:
    opened = open_bundle(bundle, "edge")
    assert (opened.path, opened.side, opened.spec, opened.extra) == (bundle, "edge", spec(), {"opset": 17})


def test_a_bundle_can_be_moved(bundle: Path, tmp_path: Path) -> None:
    bundle.rename(tmp_path / "elsewhere")
    assert open_bundle(tmp_path / "elsewhere", "edge").spec == spec()


def test_the_manifest_lists_files_in_subfolders(bundle: Path) -> None:
    assert set(json.loads((bundle / MANIFEST).read_text())["files"]) == {"encoder.onnx", "tokenizer/vocab.json"}


@pytest.mark.parametrize("name", ["encoder.onnx", "tokenizer/vocab.json"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refused(bundle, f"{name} is missing")


def test_a_truncated_file_is_named_with_its_sizes(bundle: Path) -> None:
    (bundle / "encoder.onnx").write_bytes(b"weights")
    refused(bundle, "encoder.onnx has 7 bytes, expected 7000")


def test_a_file_with_one_other_byte_is_named(bundle: Path) -> None:
    data = bytearray((bundle / "encoder.onnx").read_bytes())
    data[3500] ^= 1
    (bundle / "encoder.onnx").write_bytes(data)
    refused(bundle, "encoder.onnx has other bytes")


def test_the_other_half_of_the_model_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="is the edge half of a model; here the cloud half is needed"):
        open_bundle(bundle, "cloud")


def test_a_folder_that_holds_both_halves_is_answered_with_the_right_one(bundle: Path) -> None:
    refused(bundle.parent, f"did you mean {bundle}")


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path, "is not a bundle: spec.json is missing; make one")
    refused(tmp_path / "absent", "is not a bundle")


@pytest.mark.parametrize("name", ["../secret", "tokenizer/../../secret", "/etc/hostname"])
def test_a_manifest_can_t_point_out_of_the_bundle(bundle: Path, name: str) -> None:
    (bundle.parent / "secret").write_text("x")
    rewrite(bundle, lambda manifest: manifest["files"].update({name: {"bytes": 1, "sha256": ""}}))
    refused(bundle, "is not a file of the bundle")


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "{}", '"x"', "\x00"])
def test_a_manifest_that_is_no_manifest_is_refused(bundle: Path, text: str) -> None:
    (bundle / MANIFEST).write_text(text, encoding="utf-8")
    refused(bundle, "split again")


def test_a_manifest_that_is_not_utf8_is_refused(bundle: Path) -> None:
    (bundle / MANIFEST).write_bytes(b'{"side": "\xff"}')
    refused(bundle, "not valid JSON")


@pytest.mark.parametrize("key", ["format", "side", "model", "extra", "files"])
def test_a_manifest_without_one_of_its_parts_names_it(bundle: Path, key: str) -> None:
    rewrite(bundle, lambda manifest: manifest.pop(key))
    refused(bundle, f"'{key}' is missing")


def test_another_format_is_refused_with_both_names(bundle: Path) -> None:
    rewrite(bundle, lambda manifest: manifest.update(format="splitvla-bundle/9"))
    refused(bundle, f"splitvla-bundle/9.*{FORMAT}")


@pytest.mark.parametrize("entry", [None, 7, {}, {"bytes": 7000}, {"sha256": "x"}])
def test_a_file_entry_without_size_or_checksum_is_refused(bundle: Path, entry: object) -> None:
    rewrite(bundle, lambda manifest: manifest["files"].update({"encoder.onnx": entry}))
    refused(bundle, "encoder.onnx")


def test_an_edited_model_is_refused(bundle: Path) -> None:
    rewrite(bundle, lambda manifest: manifest["model"].update(embed_dim=128))
    refused(bundle, "fingerprint does not match")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["encoder.onnx", MANIFEST])
def test_a_file_that_may_not_be_read_is_named(bundle: Path, name: str) -> None:
    (bundle / name).chmod(0)
    refused(bundle, f"{name} can't be read: Permission denied")


def test_a_read_error_is_a_bundle_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> str:
        raise PermissionError(13, "Permission denied", "encoder.onnx")

    monkeypatch.setattr("splitvla_shared.bundle.file_sha256", fail)
    refused(bundle, "encoder.onnx can't be read: Permission denied; check its permissions")
