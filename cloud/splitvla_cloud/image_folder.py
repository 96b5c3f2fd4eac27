"""A folder of camera frames on this side: which files are images, and the one way to read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from splitvla_shared.errors import ObservationError
from splitvla_shared.nouns import Image
from splitvla_shared.preprocess.images import load_image

_MOST = 32  # more change little and cost seconds each
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def image_files(folder: Path) -> list[Path]:
    """Up to 32 of the folder and of those in it, evenly taken in order of path. Raises ObservationError without any."""
    if not folder.is_dir():
        raise ObservationError(f"{folder} is no folder; name one that holds camera frames")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise ObservationError(f"{folder} holds no image ({', '.join(_SUFFIXES)}); put some camera frames there")
    chosen = np.linspace(0, len(files) - 1, min(len(files), _MOST)).round().astype(int)
    return [files[index] for index in chosen]


def read_image(file: Path) -> Image:
    """uint8 RGB (height, width, 3). Raises ObservationError that names the file and what is wrong with it."""
    try:
        return load_image(file)
    except ObservationError as error:
        raise ObservationError(f"{error}; remove it or replace it") from error
