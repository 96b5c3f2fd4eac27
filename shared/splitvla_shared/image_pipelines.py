"""The named ways in which a camera frame becomes the square image that the encoder takes.

`split` writes the model's own into the edge bundle and the robot carries it out; see docs/images-and-actions.md.
"""

from __future__ import annotations

import enum

from splitvla_shared.errors import ConfigError


class ImagePipeline(enum.Enum):
    """The values are the names on the command line and in the bundle."""

    HF = "hf"  # the checkpoint's own processor, as openvla's deploy.py runs it
    EVAL = "eval"  # openvla's evaluation scripts: JPEG, Lanczos-3
    EVAL_CROP = "eval-crop"  # the same and the centre crop of models trained with image augmentation


def parse_image_pipeline(name: str) -> ImagePipeline:
    """Raises ConfigError listing the names."""
    for pipeline in ImagePipeline:
        if pipeline.value == name:
            return pipeline
    names = ", ".join(pipeline.value for pipeline in ImagePipeline)
    raise ConfigError(f"unknown image pipeline {name!r:.60}; one of {names}")
