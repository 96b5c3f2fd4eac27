"""How often the local policy said what the server said, on the same frame: its licence to act.

An answer agrees when *every* dimension of its first action lies within so many bins of the server's. A share over the
dimensions would be kind to a policy that never moves: most tasks keep most dimensions still. Only a dimension whose
statistics leave it no range is passed over: whatever is said there moves nothing.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from splitvla_shared.nouns import ActionArray

_REMEMBERED = 100


class Agreement:
    """Mutable state: the last hundred comparisons. Written by one thread; `share` and `samples` may be read by another.

    bins: of a dimension's range from -1 to 1, as the model's tokens divide it. within: how many may lie between. still:
    (dims,), the dimensions that are passed over.
    """

    def __init__(self, bins: int, within: int, still: npt.NDArray[np.bool_]) -> None:
        self._bins, self._within, self._still = bins, within, still
        self._agreed: deque[bool] = deque(maxlen=_REMEMBERED)
        self._now = (0.0, 0)

    @property
    def now(self) -> tuple[float, int]:
        """(share of the last answers that agreed, how many answers that is)."""
        return self._now

    def note(self, local: ActionArray, server: ActionArray) -> None:
        """Two normalised answers (length, dims) to one frame; the lengths may differ."""
        apart = np.abs(bin_of(local[0], self._bins) - bin_of(server[0], self._bins))
        self._agreed.append(bool((self._still | (apart <= self._within)).all()))
        self._now = sum(self._agreed) / len(self._agreed), len(self._agreed)


def bin_of(normalized: ActionArray, bins: int) -> ActionArray:
    """Numbers in [-1, 1] to the index of their bin, 0..bins - 2; `bins` edges have one bin less between them."""
    index: ActionArray = np.floor((np.clip(normalized, -1.0, 1.0) + 1.0) / 2.0 * (bins - 1))
    return np.minimum(index, bins - 2)
