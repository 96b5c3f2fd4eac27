"""A folder of camera frames on this side: which files are images, and the one way to read them."""

from __future__ import annotations

from pathlib import Path

from splitvla_shared.errors import ObservationError
from splitvla_shared.nouns import Image
from splitvla_shared.preprocess.images import load_image

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def image_files(folder: Path) -> list[Path]:
    """Those of the folder and of the folders in it, in order of path. Raises ObservationError when there is none."""
    if not folder.is_dir():
        raise ObservationError(f"{folder} is no folder; name one that holds camera frames")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise ObservationError(f"{folder} holds no image ({', '.join(_SUFFIXES)}); put some camera frames there")
    return files


def read_image(file: Path) -> Image:
    """uint8 RGB (height, width, 3). Raises ObservationError that names the file and what is wrong with it."""
    try:
        return load_image(file)
    except ObservationError as error:
        raise ObservationError(f"{error}; remove it or replace it") from error
