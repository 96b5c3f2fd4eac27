"""Camera frames to patch embeddings, for the server's call and for the local policy: no frame is encoded twice."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from splitvla_edge.images import check_image
from splitvla_shared.nouns import FloatArray, Image


class Encoder(Protocol):
    def embed(self, image: Image) -> FloatArray:
        """uint8 RGB (image_size, image_size, 3) to float32 (patches, embed_dim)."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """patches: (patches, embed_dim) a camera. preprocess_s: what making squares of the frames took, of this call."""

    patches: tuple[FloatArray, ...]
    preprocess_s: float = 0.0


class Embedder:
    """Thread-safe: one frame is encoded at a time, and who comes second with the same frame gets the same arrays.

    Mutable state: the last frames, by identity, and their embeddings, which nobody may write to.
    """

    def __init__(self, square: Callable[[Image], Image], encoder: Encoder, clock: Callable[[], float]) -> None:
        self._square, self._encoder, self._clock = square, encoder, clock
        self._lock = threading.Lock()
        self._images: tuple[Image, ...] = ()
        self._last = Embedded(())

    def __call__(self, images: tuple[Image, ...]) -> Embedded:
        """images: uint8 RGB (height, width, 3) each. Raises ObservationError, BundleError."""
        with self._lock:
            if images and len(images) == len(self._images) and all(map(_same, images, self._images)):
                return dataclasses.replace(self._last, preprocess_s=0.0)
            started = self._clock()
            squares = [self._square(check_image(image)) for image in images]
            preprocess_s = self._clock() - started
            self._last = Embedded(tuple(self._encoder.embed(square) for square in squares), preprocess_s)
            self._images = images
            return self._last


def _same(one: Image, other: Image) -> bool:
    return one is other
