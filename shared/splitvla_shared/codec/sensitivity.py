"""What a backbone makes of an error in an embedding, as `split` measures it and the robot's calibration uses it.

A symmetric matrix M of the embedding's width: an error e in a patch counts as e^T M e. Stored as float16 with a trace
of `dim`, so that the numbers are near 1 whatever the model; calibration adds an even share, far above the rounding.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from splitvla_shared.bundle import Bundle
from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import FloatArray

SENSITIVITY_FILE = "sensitivity.npy"


def save_sensitivity(folder: Path, matrix: FloatArray) -> None:
    """matrix: float32 (dim, dim), symmetric, of any scale above zero."""
    np.save(folder / SENSITIVITY_FILE, (matrix * (len(matrix) / np.trace(matrix))).astype(np.float16))


def load_sensitivity(bundle: Bundle) -> FloatArray | None:
    """float32 (dim, dim); None for a bundle that was split before it was measured. Raises BundleError."""
    file, dim = bundle.path / SENSITIVITY_FILE, bundle.spec.embed_dim
    if not file.is_file():
        return None
    try:
        stored = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{file} can't be read: {error}; copy it again or split again") from error
    if stored.shape != (dim, dim) or stored.dtype != np.float16 or not np.isfinite(stored).all():
        raise BundleError(f"{file} is {stored.dtype} {stored.shape}, expected finite float16 {(dim, dim)}; split again")
    return np.asarray(stored, np.float32)
