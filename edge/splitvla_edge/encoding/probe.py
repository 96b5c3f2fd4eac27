"""Is this still the model that was split? The golden probe of the encoder, and black against white end to end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from splitvla_shared.bundle import Bundle
from splitvla_shared.encoders import FP16, FP32, INT8
from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import ActionChunk, FloatArray, Image, Observation
from splitvla_shared.probe import EdgeProbe, blindness, probe_image

# How far the embedding may be from the float32 one, as a share of its length. Far above what rounding does on any
# device, TensorFloat-32 included, and for int8 above what dynamic quantisation does; another image differs by about 1.
TOLERANCE: Mapping[str, float] = {FP32: 0.01, FP16: 0.03, INT8: 0.35}
_BLACK_AND_WHITE = (0, 255)
INSTRUCTIONS = ("put the red block into the white bowl", "open the drawer")


class Encoder(Protocol):
    def embed(self, image: Image) -> FloatArray:
        """uint8 RGB (image_size, image_size, 3) to float32 (patches, embed_dim)."""


E = TypeVar("E", bound=Encoder)


class Policy(Protocol):
    def act(self, observation: Observation, *, deadline_s: float) -> ActionChunk:
        """The action for an observation, or an error."""


def check_encoder(encoder: Encoder, bundle: Bundle, numerics: str = FP32) -> float:
    """Embed the probe image and compare with what `split` found; the difference as a share of the embedding's length.

    numerics: the encoder's name in `TOLERANCE`. Raises BundleError when the bundle has no probe or the answer differs.
    """
    expected = EdgeProbe.load(bundle.path)
    got = EdgeProbe.of(encoder.embed(probe_image(bundle.spec.image_size)))
    if expected.projection.shape != got.projection.shape:
        raise BundleError(
            f"golden probe: {bundle.path} expects {len(expected.projection)} patches, the encoder gives "
            f"{len(got.projection)}; split again"
        )
    difference = expected.difference(got)
    if not difference <= TOLERANCE[numerics]:
        shown = f"{difference:.1%}" if math.isfinite(difference) else "without bound"
        raise BundleError(
            f"golden probe: the {numerics} encoder of {bundle.path} differs from the model that was split by {shown}, "
            f"{TOLERANCE[numerics]:.0%} is allowed; try the CPU provider, then split again"
        )
    return difference


def probed(encoder: E, bundle: Bundle, numerics: str = FP32) -> E:
    """The encoder itself, once it has answered the golden probe. Raises BundleError as `check_encoder` does."""
    check_encoder(encoder, bundle, numerics)
    return encoder


def check_sees(
    policy: Policy, image_size: int, *, deadline_s: float, instructions: Sequence[str] = INSTRUCTIONS
) -> None:
    """Ask for the action of a black and of a white image, once an instruction.

    Raises BundleError, with the reason, when they are the same for all; whatever `act` raises.
    """
    black, white = (
        [
            _tokens(policy, np.full((image_size, image_size, 3), level, np.uint8), text, deadline_s)
            for text in instructions
        ]
        for level in _BLACK_AND_WHITE
    )
    if reason := blindness(black, white):
        raise BundleError(f"{reason}; run `splitvla-cloud verify`")


def _tokens(policy: Policy, image: Image, instruction: str, deadline_s: float) -> tuple[int, ...]:
    return policy.act(Observation(0, (image,), instruction, time.monotonic()), deadline_s=deadline_s).tokens
