"""The frames that a reduced encoder is fitted to and measured on: the user's own, or scenes made in code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from splitvla_cloud.image_folder import image_files, read_image
from splitvla_shared.nouns import Image
from splitvla_shared.preprocess.images import to_square
from splitvla_shared.spec import Resize

BUILT_IN = 8


def calibration_frames(folder: Path | None, size: int, square: Callable[[Image], Image] | None = None) -> list[Image]:
    """uint8 RGB frames (size, size, 3): up to 32 images of `folder` and of the folders in it, or eight made in
    code when it is None.

    square: what makes a camera frame one of that size; None stretches it.
    Raises ObservationError when the folder holds no image or one that can't be read.
    """
    square = square or partial(to_square, size=size, resize=Resize.NAIVE)
    if folder is None:
        return [_scene(index, size) for index in range(BUILT_IN)]
    return [square(read_image(file)) for file in image_files(folder)]


def _scene(index: int, size: int) -> Image:
    """Smooth light, some flat boxes with hard edges, and sensor noise; darker and brighter by turns."""
    random = np.random.default_rng(1000 + index)
    canvas = np.zeros((size, size, 3))
    for cells, weight in ((3, 0.5), (9, 0.3), (28, 0.2)):  # large forms weigh more, as in pictures
        canvas += weight * _enlarged(random.random((cells, cells, 3)), size)
    for _ in range(12):
        top, left = random.integers(0, size, 2)
        height, width = random.integers(size // 16 + 1, size // 3 + 2, 2)
        canvas[top : top + height, left : left + width] = random.random(3)
    exposure = (0.35, 0.7, 1.0, 1.3)[index % 4]
    noisy = 255 * exposure * canvas + random.normal(0, 4, canvas.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _enlarged(grid: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Bilinear, in plain numpy: the same bits whatever image library is installed."""
    cells = len(grid)
    at = np.linspace(0, cells - 1, size)
    low = np.minimum(at.astype(int), cells - 2)
    share = (at - low)[:, None, None]
    rows = grid[low] * (1 - share) + grid[low + 1] * share
    share = share[:, 0][None]
    mixed: npt.NDArray[np.float64] = rows[:, low] * (1 - share) + rows[:, low + 1] * share
    return mixed
