"""Camera frames and image files to the square uint8 RGB image that the encoder takes.

Source: `PrismaticImageProcessor` (processing_prismatic.py of the OpenVLA checkpoint), whose torchvision steps on a PIL
image are Pillow's own. Normalisation is inside encoder.onnx.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import UnidentifiedImageError

from splitvla_shared.errors import ObservationError
from splitvla_shared.nouns import Image
from splitvla_shared.spec import Resize

Fill = tuple[int, int, int]

# int(255 * 0.5): what openvla-v01's processor, whose means are 0.5, pads with.
GRAY: Fill = (127, 127, 127)

# A 100-megapixel camera is no robot's; a bomb of a few kB on disk inflates to more.
MAX_PIXELS = 100_000_000
# A sliver has few pixels, and the square that it is padded to gigabytes.
MAX_SIDE = 8192
# Read by Pillow itself; PostScript, which would start another program, is left out on purpose.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
# What Pillow's decoders raise on damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, PilImage.DecompressionBombError)


def load_image(path: Path | str) -> Image:
    """Read an image file as uint8 RGB (height, width, 3), in the order of its pixels (no EXIF rotation).

    Raises ObservationError, in one line with the file's name, when it is missing, damaged, not 8 bits a channel, or
    larger than MAX_PIXELS; the size is checked before the pixels are decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PilImage.DecompressionBombWarning)  # MAX_PIXELS below is the bound
            with PilImage.open(path, formats=_FORMATS) as image:
                return _decode(image, path)
    except UnidentifiedImageError as error:
        raise ObservationError(f"image {path}: not an image; formats read are {', '.join(_FORMATS)}") from error
    except _DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ObservationError(f"image {path}: {reason}") from error


def _decode(image: PilImage.Image, path: Path | str) -> Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ObservationError(f"image {path}: {width}x{height} is over {MAX_PIXELS:,} pixels; scale it down")
    if image.mode not in _EIGHT_BIT_MODES:
        raise ObservationError(f"image {path}: pixels are {image.mode!r}; expected 8 bits a channel")
    return np.asarray(image.convert("RGB"))


def check_image(array: npt.NDArray[Any]) -> Image:
    """The array as uint8 RGB (height, width, 3); gray (height, width) and RGBA are converted as the reference does.

    Raises ObservationError on any other dtype or shape, and on an image that is empty, too large or too long.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ObservationError(f"image is {kind}; expected a uint8 array with values 0..255")
    if array.size == 0 or array.size > MAX_PIXELS * 4:
        raise ObservationError(f"image of shape {array.shape} is empty or over {MAX_PIXELS:,} pixels")
    if max(array.shape[:2], default=0) > MAX_SIDE:
        raise ObservationError(f"image of shape {array.shape} is over {MAX_SIDE:,} pixels long; scale it down")
    if array.ndim == 3 and array.shape[2] == 3:
        return array
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 4):
        return np.asarray(PilImage.fromarray(array).convert("RGB"))
    raise ObservationError(f"image has shape {array.shape}; expected (height, width, 3) RGB, (height, width) or RGBA")


def to_square(image: Image, size: int, resize: Resize, fill: Fill = GRAY) -> Image:
    """uint8 RGB (height, width, 3) to (size, size, 3); an image that already has that shape is left untouched.

    NAIVE ignores the aspect ratio. LETTERBOX pads to a square with `fill` first. Pillow's bicubic, antialiased.
    """
    if image.shape == (size, size, 3):
        return image
    if resize is Resize.NAIVE:
        return np.asarray(PilImage.fromarray(image).resize((size, size), PilImage.Resampling.BICUBIC))
    return _letterboxed(image, size, fill)


def _letterboxed(image: Image, size: int, fill: Fill) -> Image:
    height, width, _ = image.shape
    side = max(height, width)
    down, right = int((side - height) / 2), int((side - width) / 2)
    padded = np.empty((height + 2 * down, width + 2 * right, 3), np.uint8)
    padded[:] = np.asarray(fill, np.uint8)
    padded[down : down + height, right : right + width] = image

    # An odd difference leaves the padded image one pixel off a square: short side to `size`, centre of the long one.
    height, width, _ = padded.shape
    short = min(height, width)
    scaled_size = (int(size * width / short), int(size * height / short))
    scaled = np.asarray(PilImage.fromarray(padded).resize(scaled_size, PilImage.Resampling.BICUBIC))
    top, left = round((scaled_size[1] - size) / 2), round((scaled_size[0] - size) / 2)
    return scaled[top : top + size, left : left + size]
