"""What the alternatives send: the camera's frame as it is, the square that the model sees, or a JPEG of that square."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import simplejpeg

from splitvla_shared.errors import ObservationError
from splitvla_shared.nouns import Image

JPEG_QUALITY = 95
Prepare = Callable[[Image], Image | bytes]


def as_jpeg(square: Image) -> bytes:
    """4:2:0 at quality 95: what TensorFlow's defaults write, and OpenVLA's training data went through."""
    ordered = np.ascontiguousarray(square)
    data: bytes = simplejpeg.encode_jpeg(ordered, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420")
    return data


def from_jpeg(data: bytes) -> Image:
    """Raises ObservationError."""
    try:
        image: Image = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise ObservationError(f"{len(data)} bytes are no JPEG: {error}") from error
    return image
