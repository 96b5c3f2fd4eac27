"""The frames that `verify` shows to both models: five made in code, and those of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitvla_cloud.image_folder import image_files, read_image
from splitvla_shared.nouns import Image

BLACK, WHITE = "black", "white"
INSTRUCTIONS = ("put the red block into the white bowl", "Open the top drawer")  # the second: prompts are lower-cased
_HEIGHT, _WIDTH = 480, 640


@dataclass(frozen=True, slots=True)
class NamedFrame:
    """image: uint8 RGB (height, width, 3)."""

    name: str
    image: Image


def built_in_frames() -> list[NamedFrame]:
    """Gradient, noise, black, white and a drawn scene, 480 x 640; the same on every machine."""
    row, column = np.indices((_HEIGHT, _WIDTH))
    gradient = np.stack((column * 255 // (_WIDTH - 1), row * 255 // (_HEIGHT - 1), (row + column) % 256), axis=-1)
    noise = np.random.default_rng(0).integers(0, 256, (_HEIGHT, _WIDTH, 3))
    frames = {
        "gradient": gradient,
        "noise": noise,
        BLACK: np.zeros((_HEIGHT, _WIDTH, 3)),
        WHITE: np.full((_HEIGHT, _WIDTH, 3), 255),
        "scene": _scene(),
    }
    return [NamedFrame(name, image.astype(np.uint8)) for name, image in frames.items()]


def read_frames(folder: Path) -> list[NamedFrame]:
    """Up to 32 of the folder and of those in it. Raises ObservationError when one can't be read, or none is."""
    return [NamedFrame(str(file.relative_to(folder)), read_image(file)) for file in image_files(folder)]


def _scene() -> Image:
    """A table under a wall with a red block, a white bowl and a gripper."""
    row, column = np.indices((_HEIGHT, _WIDTH))
    scene = np.empty((_HEIGHT, _WIDTH, 3), np.uint8)
    scene[:] = (168, 172, 180)
    scene[row > 210 + column // 16] = (141, 104, 70)
    scene[(abs(row - 330) < 38) & (abs(column - 220) < 44)] = (186, 32, 38)
    bowl = ((row - 320) / 52) ** 2 + ((column - 430) / 88) ** 2
    scene[bowl < 1] = (236, 236, 230)
    scene[bowl < 0.6] = (205, 204, 198)
    scene[(row < 180) & (abs(column - 300) < 22)] = (40, 40, 44)
    scene[(row >= 160) & (row < 230) & ((abs(column - 276) < 8) | (abs(column - 324) < 8))] = (24, 24, 26)
    return scene
