"""Codec tables put into a bundle, and carried to the machine that holds the other half.

A calibration is one file of tables and a new fingerprint in both halves. Where the halves lie on two machines, a parcel
crosses: the tables and the whole spec, so that the other side finds out by itself whether they are for its model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splitvla_shared.archives import read_arrays
from splitvla_shared.bundle import MANIFEST, Bundle, open_bundle, write_manifest
from splitvla_shared.codec.bundled import CODEC_FILE
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.errors import BundleError
from splitvla_shared.replaced import exchange, settle, staged_copy, write_new
from splitvla_shared.spec import ModelSpec

_PARCEL_FORMAT = 1
_MAX_PARCEL_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """Tables, as the bytes of their file, and the spec of the model that they were learned for."""

    tables: bytes
    spec: ModelSpec

    def write(self, path: Path) -> None:
        """Raises BundleError when the disk refuses."""
        stream = io.BytesIO()
        np.savez(
            stream,
            allow_pickle=False,
            format=np.array(_PARCEL_FORMAT),
            tables=np.frombuffer(self.tables, np.uint8),
            spec=np.frombuffer(json.dumps(self.spec.to_json()).encode(), np.uint8),
        )
        try:
            write_new(path, stream.getvalue())
        except OSError as error:
            raise BundleError(f"{path} can't be written: {error.strerror}") from error

    @classmethod
    def read(cls, path: Path) -> Parcel:
        """Raises BundleError on anything that `write` did not make, or whose tables are not those of its spec."""
        try:
            if path.stat().st_size > _MAX_PARCEL_BYTES:
                raise BundleError(f"{path} is too large to be a codec parcel")
            with path.open("rb") as stream:
                arrays = read_arrays(stream)
            if int(arrays["format"]) != _PARCEL_FORMAT:
                raise BundleError(f"{path} is a parcel of format {int(arrays['format'])}, made by another version")
            data, spec = arrays["tables"].tobytes(), ModelSpec.from_json(json.loads(arrays["spec"].tobytes()))
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise BundleError(f"{path} is no codec parcel ({str(error)[:200]}); `calibrate` writes one") from error
        tables = CodecTables.from_bytes(data)
        if tables.sha256 != spec.codec_sha256 or tables.shape != (spec.patches, spec.embed_dim):
            raise BundleError(f"{path}: its tables are not those that its spec speaks of; carry it over again")
        return cls(data, spec)


def calibrated(spec: ModelSpec, tables: CodecTables) -> ModelSpec:
    """The spec of the same model with these tables, under its new fingerprint."""
    return dataclasses.replace(spec, codec_sha256=tables.sha256).sealed()


def same_model(one: ModelSpec, other: ModelSpec) -> list[str]:
    """What differs besides the codec, as `ModelSpec.differences` says it."""
    lines = one.uncalibrated().differences(other.uncalibrated())
    return [line for line in lines if not line.startswith("fingerprint:")]


@contextlib.contextmanager
def rewritten(
    bundle: Bundle, spec: ModelSpec, extra: Mapping[str, Any], files: Mapping[str, bytes | None]
) -> Iterator[Path]:
    """A copy of the bundle with other files, None for one that goes; `exchange` then puts it in the bundle's place."""
    with staged_copy(bundle.path) as whole:
        for name, data in files.items():
            if data is None:
                (whole / name).unlink(missing_ok=True)
            else:
                write_new(whole / name, data)
        (whole / MANIFEST).unlink()
        write_manifest(whole, bundle.side, spec, extra)
        settle(whole / MANIFEST)
        settle(whole)
        yield whole


@contextlib.contextmanager
def staged(bundle: Bundle, parcel: Parcel, extra: Mapping[str, Any]) -> Iterator[Path]:
    """A copy of the bundle with the parcel's tables in it, checked; `exchange` then puts it in the bundle's place."""
    with rewritten(bundle, parcel.spec, extra, {CODEC_FILE: parcel.tables}) as whole:
        yield whole


def install(folder: Path, parcel: Parcel) -> ModelSpec:
    """Put a parcel's tables into the cloud bundle `folder`, in the place of any before; returns its new spec.

    Raises BundleError when the folder is no cloud bundle, the parcel is for another model, or the disk refuses; the
    folder is then as it was.
    """
    bundle = open_bundle(folder, "cloud")
    check_same(folder, bundle.spec, parcel.spec)
    with staged(bundle, parcel, bundle.extra) as whole:
        exchange(whole, folder)
    return parcel.spec


def check_same(folder: Path, here: ModelSpec, there: ModelSpec) -> None:
    """Raises BundleError unless the two are one model, calibrated or not."""
    lines = same_model(here, there)
    if lines:
        raise BundleError(f"{folder} holds another model than was calibrated: {'; '.join(lines[:3])[:300]}")
