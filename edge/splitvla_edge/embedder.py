"""Camera frames to what is sent of them, for the server's call and, once it is shared, for the local policy too."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.nouns import FloatArray, Image
from splitvla_shared.preprocess.images import check_image


class Encoder(Protocol):
    def embed(self, image: Image) -> FloatArray:
        """uint8 RGB (image_size, image_size, 3) to float32 (patches, embed_dim)."""

    def coefficients(self, image: Image) -> FloatArray:
        """The embedding less its channel mean, in the codec tables' basis: float32 (patches, columns)."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """A frame's cameras: patches (patches, embed_dim) each, coefficients (patches, columns) each, as far as asked for.

    preprocess_s: what making squares of the frames took, of this call.
    """

    patches: tuple[FloatArray, ...] = ()
    coefficients: tuple[FloatArray, ...] = ()
    preprocess_s: float = 0.0


class Embedder:
    """Thread-safe: one frame is encoded at a time. Once shared, who comes second with a frame gets the same arrays.

    Mutable state: the last frames' squares and what was made of them, which nobody may write to; of a shared one also
    a copy of the frames, since a camera may write the next picture into the same array.
    """

    def __init__(
        self,
        square: Callable[[Image], Image],
        encoder: Encoder,
        clock: Callable[[], float],
        tables: CodecTables | None = None,
    ) -> None:
        self._square, self._encoder, self._clock, self._tables = square, encoder, clock, tables
        self._lock = threading.Lock()
        self._shared = False
        self._images: tuple[Image, ...] = ()
        self._squares: list[Image] = []
        self._last = Embedded()

    def share(self) -> None:
        """Two will ask for each frame from now on."""
        self._shared = True

    def __call__(self, images: tuple[Image, ...], *, patches: bool = True, coefficients: bool = False) -> Embedded:
        """What is asked for. images: uint8 RGB (height, width, 3) each. Coefficients alone are less work than patches.

        Raises ObservationError, BundleError.
        """
        with self._lock:
            preprocess_s = self._take(images)
            if patches and not self._last.patches:
                found = tuple(self._encoder.embed(square) for square in self._squares)
                self._last = dataclasses.replace(self._last, patches=found)
            if coefficients and not self._last.coefficients:
                self._last = dataclasses.replace(self._last, coefficients=self._coefficients())
            return dataclasses.replace(self._last, preprocess_s=preprocess_s)

    def _coefficients(self) -> tuple[FloatArray, ...]:
        if self._last.patches and self._tables is not None:
            return tuple(self._tables.coefficients(patches) for patches in self._last.patches)
        return tuple(self._encoder.coefficients(square) for square in self._squares)

    def _take(self, images: tuple[Image, ...]) -> float:
        """Seconds that making squares of new frames took."""
        if self._shared and images and len(images) == len(self._images) and all(map(_same, images, self._images)):
            return 0.0
        started = self._clock()
        self._squares = [self._square(check_image(image)) for image in images]
        self._last = Embedded()
        self._images = tuple(image.copy() for image in images) if self._shared else ()
        return self._clock() - started


def _same(one: Image, other: Image) -> bool:
    return one.shape == other.shape and np.array_equal(one, other)
