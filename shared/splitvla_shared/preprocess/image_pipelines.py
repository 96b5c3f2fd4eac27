"""The image pipelines carried out: a camera frame in, the encoder's square out; and which way up the camera hangs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from splitvla_shared.bundle import Bundle
from splitvla_shared.errors import BundleError, ConfigError
from splitvla_shared.image_pipelines import ImagePipeline, parse_image_pipeline
from splitvla_shared.nouns import Image
from splitvla_shared.preprocess.eval_images import check_decoder, crop_center, jpeg_round_trip, resize_lanczos
from splitvla_shared.preprocess.images import GRAY, Fill, to_square
from splitvla_shared.spec import Resize

ImageStep = Callable[[Image], Image]


def _as_is(image: Image) -> Image:
    return image


def _rotate180(image: Image) -> Image:
    return np.ascontiguousarray(image[::-1, ::-1])


# Of the camera, not of the model's pipeline: LIBERO renders upside down, and its evaluation turns every frame.
CAMERA_TRANSFORMS: dict[str, ImageStep] = {"none": _as_is, "rotate180": _rotate180}


class Square(Protocol):
    """Of a ModelSpec, or of what a checkpoint says before there is one."""

    @property
    def image_size(self) -> int: ...

    @property
    def resize(self) -> Resize: ...


def build_pipeline(pipeline: ImagePipeline, camera_transform: str, spec: Square, fill: Fill) -> ImageStep:
    """A function from uint8 RGB (height, width, 3) to (image_size, image_size, 3).

    Raises ConfigError on an unknown camera transform, and when the pipeline's JPEG decoder is not installed.
    """
    if camera_transform not in CAMERA_TRANSFORMS:
        raise ConfigError(f"unknown camera transform {camera_transform!r:.60}; one of {', '.join(CAMERA_TRANSFORMS)}")
    turn = CAMERA_TRANSFORMS[camera_transform]
    size = spec.image_size

    def hf(image: Image) -> Image:
        return to_square(turn(image), size, spec.resize, fill)

    # After these the processor's own resize or letterbox meets a square of its size, and leaves it as it is.
    def evaluation(image: Image) -> Image:
        return resize_lanczos(jpeg_round_trip(turn(image)), size)

    def cropped(image: Image) -> Image:
        return crop_center(evaluation(image))

    steps = {ImagePipeline.HF: hf, ImagePipeline.EVAL: evaluation, ImagePipeline.EVAL_CROP: cropped}
    if pipeline is not ImagePipeline.HF:
        check_decoder()
    return steps[pipeline]


def read_fill(bundle: Bundle) -> Fill:
    """What a letterboxed frame is padded with. Raises BundleError."""
    value, path = bundle.extra.get("letterbox_fill"), bundle.path
    if value is None:
        return GRAY
    if isinstance(value, list) and len(value) == 3 and all(type(c) is int and 0 <= c <= 255 for c in value):
        return (value[0], value[1], value[2])
    raise BundleError(f"{path}: letterbox_fill is {value!r}, expected three numbers 0..255; split again")


def read_pipeline(bundle: Bundle) -> ImagePipeline:
    """The image pipeline that the bundle was split for. Raises BundleError."""
    value, path = bundle.extra.get("image_pipeline"), bundle.path
    if value is None:  # bundles made before there was a choice
        return ImagePipeline.HF
    try:
        return parse_image_pipeline(value)
    except ConfigError as error:
        raise BundleError(f"{path}: image_pipeline: {error}; split again, with this version") from error
