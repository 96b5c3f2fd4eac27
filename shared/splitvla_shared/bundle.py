"""Bundles on disk: a folder whose spec.json names every file in it with its size and SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from splitvla_shared.errors import BundleError
from splitvla_shared.spec import ModelSpec

Side = Literal["edge", "cloud"]
FORMAT = "splitvla-bundle/1"
MANIFEST = "spec.json"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was found whole. `extra` is the side's own part of spec.json."""

    path: Path
    side: Side
    spec: ModelSpec
    extra: Mapping[str, Any] = field(default_factory=dict)


def file_sha256(path: Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """Hex digest of a file; `advance` gets the bytes of each block that was read."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def write_manifest(
    path: Path,
    side: Side,
    spec: ModelSpec,
    extra: Mapping[str, Any] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write spec.json over all files below `path`; call it last, when the bundle is complete.

    `advance` gets the bytes of the files as they are hashed.
    """
    files = {
        str(file.relative_to(path)): {"bytes": file.stat().st_size, "sha256": file_sha256(file, advance)}
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    manifest = {"format": FORMAT, "side": side, "model": spec.to_json(), "extra": dict(extra or {}), "files": files}
    (path / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def open_bundle(path: Path, side: Side) -> Bundle:
    """Read and check a bundle.

    Raises BundleError that names the file when the folder is not a bundle of this side, or when a file is
    missing, has another size, or other bytes than when `split` wrote it.
    """
    try:
        manifest = _read_manifest(path, side)
        for name, entry in manifest["files"].items():
            _check_file(path, name, entry)
    except OSError as error:  # most often a bundle that was copied by another user
        raise BundleError(f"{error.filename or path} can't be read: {error.strerror}; check its permissions") from error
    return Bundle(path, side, ModelSpec.from_json(manifest["model"]), manifest["extra"])


def _read_manifest(path: Path, side: Side) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        hint = f"; did you mean {path / side}?" if (path / side / MANIFEST).is_file() else ""
        raise BundleError(f"{path} is not a bundle: {MANIFEST} is missing{hint or '; make one: splitvla-cloud split'}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{file} is not valid JSON ({error}); split again") from error
    expected = {"format": str, "side": str, "model": dict, "extra": dict, "files": dict}
    for key, kind in expected.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind):
            raise BundleError(f"{file}: {key!r} is missing or not of type {kind.__name__}; split again")
    if manifest["format"] != FORMAT:
        raise BundleError(f"{file}: format {manifest['format']!r}, this version reads {FORMAT!r}; split again")
    if manifest["side"] != side:
        raise BundleError(f"{path} is the {manifest['side']} half of a model; here the {side} half is needed")
    checked: dict[str, Any] = manifest
    return checked


def _check_file(path: Path, name: str, entry: Any) -> None:
    file = path / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not isinstance(entry, dict):
        raise BundleError(f"{path / MANIFEST}: entry {name!r} is not a file of the bundle; split again")
    if not file.is_file():
        raise BundleError(f"{path} is not whole: {name} is missing; copy it again or split again")
    size = file.stat().st_size
    if size != entry.get("bytes"):
        raise BundleError(f"{path} is not whole: {name} has {size} bytes, expected {entry.get('bytes')}; copy it again")
    if file_sha256(file) != entry.get("sha256"):
        raise BundleError(f"{path} is damaged: {name} has other bytes than `split` wrote; copy it again")
