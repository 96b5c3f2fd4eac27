"""Does a camera's picture show anything? A covered lens and a frozen sensor give frames as fresh as any other. Pure.

A frame that shows nothing is never made the newest: the camera then goes stale, and the fallback machine holds.
"""

from __future__ import annotations

import numpy as np

from splitvla_shared.nouns import Image

_STRIDE = 8  # every eighth pixel both ways is enough to tell a scene from a wall of one colour
_TAILS = (1.0, 99.0)  # percent: a few hot pixels are no scene


class FrameGuard:
    """Owned by a camera's thread. Mutable state: the last picture, and since when it has been the same."""

    def __init__(self, blind_levels: int, frozen_s: float) -> None:
        """blind_levels: a picture of which each channel keeps within so many levels of 255 shows nothing; 0 = off.

        frozen_s: a sensor's noise makes every picture different, so that one that stays the same for so long is not
        live; 0 = off, for cameras whose encoder repeats a still scene.
        """
        self._blind_levels, self._frozen_s = blind_levels, frozen_s
        self._picture: Image | None = None
        self._same_since = 0.0

    def judge(self, image: Image, now: float) -> str:
        """What is wrong with the picture, "" when nothing is. now: monotonic seconds, which never fall."""
        return self._blind(image) or self._frozen(image, now)

    def _blind(self, image: Image) -> str:
        if not self._blind_levels:
            return ""
        low, high = np.percentile(image[::_STRIDE, ::_STRIDE].reshape(-1, image.shape[-1]), _TAILS, axis=0)
        spread = float((high - low).max())
        if spread >= self._blind_levels:
            return ""
        return f"sees nothing: the picture is one colour within {spread:.0f} levels; is the lens covered?"

    def _frozen(self, image: Image, now: float) -> str:
        if self._picture is None or not np.array_equal(self._picture, image):
            self._picture, self._same_since = image, now
            return ""
        same_s = now - self._same_since
        if not 0 < self._frozen_s < same_s:
            return ""
        return f"is frozen: the same picture for {same_s:.1f} s, to the last bit"
