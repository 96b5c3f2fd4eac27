"""What a backbone makes of an error in an embedding, as the cloud side measures it and the robot's calibration uses it.

By direction: a symmetric matrix M of the embedding's width; an error e in a patch counts as e^T M e. Stored as float16
with a trace of `dim`, so that the numbers are near 1 whatever the model; calibration adds an even share, far above the
rounding. By patch, where it was measured: how much an error counts there, about 1 on average.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splitvla_shared.bundle import Bundle
from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import FloatArray

SENSITIVITY_FILE, PATCHES_FILE = "sensitivity.npy", "patch_sensitivity.npy"


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """directions: float32 (dim, dim), symmetric. patches: float32 (patches,), none below zero; None: all the same."""

    directions: FloatArray
    patches: FloatArray | None = None


def sensitivity_files(found: Sensitivity) -> dict[str, bytes | None]:
    """What a bundle then holds, by name; None for a file that it must not. found: of any scale above zero."""
    matrix, patches = found.directions, found.patches
    directions = (matrix * (len(matrix) / np.trace(matrix))).astype(np.float16)
    return {
        SENSITIVITY_FILE: _bytes(directions),
        PATCHES_FILE: None if patches is None else _bytes((patches / patches.mean()).astype(np.float32)),
    }


def save_sensitivity(folder: Path, found: Sensitivity) -> None:
    """Into a folder that is no bundle yet, in the place of any before."""
    for name, data in sensitivity_files(found).items():
        if data is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(data)


def load_sensitivity(bundle: Bundle) -> Sensitivity | None:
    """None for a bundle that was split before it was measured. Raises BundleError."""
    spec = bundle.spec
    directions = _load(bundle.path / SENSITIVITY_FILE, np.float16, (spec.embed_dim, spec.embed_dim))
    if directions is None:
        return None
    patches = _load(bundle.path / PATCHES_FILE, np.float32, (spec.patches,))
    if patches is not None and not (patches.min() >= 0 < patches.sum()):
        raise BundleError(f"{bundle.path / PATCHES_FILE} holds a patch below zero, or none above; measure again")
    return Sensitivity(directions, patches)


def _load(file: Path, kind: type[np.generic], shape: tuple[int, ...]) -> FloatArray | None:
    if not file.is_file():
        return None
    try:
        stored = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{file} can't be read: {error}; copy it again or split again") from error
    if stored.shape != shape or stored.dtype != kind or not np.isfinite(stored).all():
        raise BundleError(
            f"{file} is {stored.dtype} {stored.shape}, expected finite {kind.__name__} {shape}; split again"
        )
    return np.asarray(stored, np.float32)


def _bytes(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
