"""The image steps of OpenVLA's evaluation scripts: JPEG round trip, Lanczos-3, centre crop; without TensorFlow.

Source: `resize_image` and `crop_and_resize` of experiments/robot in openvla, and the TensorFlow kernels below them
(scale_and_translate_op.cc, sampling_kernels.h, crop_and_resize_op.cc), whose float32 arithmetic is kept term by term.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage

from splitvla_shared.errors import ConfigError, ObservationError
from splitvla_shared.nouns import FloatArray, Image

JPEG_QUALITY = 95  # of tf.image.encode_jpeg; its chroma subsampling is 4:2:0, which Pillow calls 2
CROP_AREA = 0.9
_MAX_JPEG_SIDE = 65_500  # libjpeg's own
_RADIUS = np.float32(3)
_PI = np.float32(3.14159265359)
_HALF, _ONE = np.float32(0.5), np.float32(1)


def check_decoder() -> None:
    """Raises ConfigError when the JPEG decoder is not installed: at start, not at the first frame."""
    try:
        import simplejpeg  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"image pipelines eval and eval-crop need the package simplejpeg ({error}); pip install simplejpeg"
        ) from error


def jpeg_round_trip(image: Image) -> Image:
    """uint8 RGB (height, width, 3) to the same shape: what tf.image.encode_jpeg and decode_jpeg leave of it.

    Two libraries, because each is only half of TensorFlow's: Pillow writes the same coefficients, and only
    simplejpeg can decode with the fast integer DCT, from which the accurate one differs by up to 16 levels.
    Raises ObservationError on a side that no JPEG can have.
    """
    import simplejpeg

    if max(image.shape) > _MAX_JPEG_SIDE:
        raise ObservationError(f"image is {image.shape[1]}x{image.shape[0]}; a JPEG's side is at most {_MAX_JPEG_SIDE}")

    buffer = io.BytesIO()
    PilImage.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=2)
    decoded: Image = simplejpeg.decode_jpeg(buffer.getvalue(), colorspace="RGB", fastdct=True, fastupsample=False)
    return decoded


def resize_lanczos(image: Image, size: int) -> Image:
    """uint8 RGB to (size, size, 3), ignoring the aspect ratio: Lanczos-3, antialiased, rounded half to even.

    Equals tf.image.resize(method="lanczos3", antialias=True) but for single pixels in a million, off by one level.
    """
    height, width, channels = image.shape
    rows = _weighted_rows(image.reshape(height, -1).astype(np.float32), size)
    columns = np.ascontiguousarray(rows.reshape(size, width, channels).swapaxes(0, 1)).reshape(width, -1)
    resized = _weighted_rows(columns, size).reshape(size, size, channels).swapaxes(0, 1)
    return np.ascontiguousarray(np.rint(resized).clip(0, 255), np.uint8)


def crop_center(image: Image) -> Image:
    """Square uint8 RGB to the same shape: its central 90 % by area, enlarged again (bilinear, no antialiasing).

    Bit-exact with tf.image.crop_and_resize between convert_image_dtype to float32 and back, which floors 255.5 v.
    """
    size = image.shape[0]
    side = np.sqrt(np.float32(CROP_AREA))
    start = (_ONE - side) / np.float32(2)
    step = ((start + side) - start) * np.float32(size - 1) / np.float32(max(size - 1, 1))
    position = start * np.float32(size - 1) + np.arange(size, dtype=np.float32) * step
    first, last = np.floor(position).astype(np.intp), np.ceil(position).astype(np.intp)
    lerp = position - np.floor(position)

    unit = image.astype(np.float32) * np.float32(1 / 255)
    left, right = unit[:, first], unit[:, last]
    across = left + (right - left) * lerp[:, np.newaxis]
    top, bottom = across[first], across[last]
    cropped = top + (bottom - top) * lerp[:, np.newaxis, np.newaxis]
    levels: Image = (cropped.clip(0, 1) * np.float32(255.5)).astype(np.uint8)
    return levels


def _weighted_rows(rows: FloatArray, count: int) -> FloatArray:
    """(n, m) to (count, m). Row by row, and each sum from its first tap to its last, as TensorFlow adds them."""
    starts, weights = _taps(len(rows), count)
    out = np.empty((count, rows.shape[1]), np.float32)
    scratch = np.empty((weights.shape[1], rows.shape[1]), np.float32)
    for index, start in enumerate(starts.tolist()):
        source = rows[start : start + weights.shape[1]]
        used = scratch[: len(source)]
        np.multiply(source, weights[index, : len(source), np.newaxis], out=used)
        np.add.reduce(used, axis=0, out=out[index])
    return out


def _taps(n: int, count: int) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """First source row (count,) and weights (count, taps) of every output row; no tap lies outside the image."""
    pitch = _ONE / (np.float32(count) / np.float32(n))
    stretch = np.maximum(pitch, _ONE)  # the kernel widens when the image shrinks
    center = (np.arange(count, dtype=np.float32) + _HALF) * pitch
    starts = np.ceil(center - _RADIUS * stretch - _HALF).clip(0, n - 1).astype(np.intp)
    ends = np.floor(center + _RADIUS * stretch - _HALF).clip(0, n - 1).astype(np.intp) + 1

    source = starts[:, np.newaxis] + np.arange((ends - starts).max())
    distance = (source.astype(np.float32) + _HALF) - center[:, np.newaxis]
    weights: FloatArray = _lanczos(np.abs(distance * (_ONE / stretch)))
    weights[source >= ends[:, np.newaxis]] = 0
    total: FloatArray = np.add.accumulate(weights, axis=1)[:, -1:]  # `sum` adds in pairs, TensorFlow in order
    return starts, weights * (_ONE / total)


def _lanczos(x: FloatArray) -> FloatArray:
    safe = np.maximum(x, np.float32(1e-3))
    curve = _RADIUS * _sin(_PI * safe) * _sin(_PI * safe / _RADIUS) / (_PI * _PI * safe * safe)
    return np.where(x > _RADIUS, np.float32(0), np.where(x <= np.float32(1e-3), _ONE, curve))


def _sin(x: FloatArray) -> FloatArray:
    """Rounded once from float64: nearer to the C library's sinf than numpy's own float32 sine."""
    return np.sin(x.astype(np.float64)).astype(np.float32)
