"""The mean of a robot's embeddings and the basis in which they are fewest: Karhunen-Loeve, by eigendecomposition.

With a sensitivity M (how much the backbone reacts to an error in each direction) the basis is that of L^T x, where
M = L L^T: a step then costs the same everywhere in what the backbone sees, not in what the embedding measures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import FloatArray

Float64s = npt.NDArray[np.float64]

# A patch's own mean is believed as far as there are frames: with so many, half.
_HALF_BELIEVED_FRAMES = 8
# Of the sensitivity that is the same in all directions: what is never looked at by one layer may be by the next.
_EVEN_SHARE = 0.1


class Moments:
    """Sums over frames, from which mean and covariance follow. Mutable: the sums."""

    def __init__(self, patches: int, dim: int) -> None:
        self.frames = 0
        self._sums = np.zeros((patches, dim))
        self._products = np.zeros((dim, dim))

    def add(self, embedding: FloatArray) -> None:
        """embedding: float32 (patches, dim)."""
        wide = embedding.astype(np.float64)
        self.frames += 1
        self._sums += wide
        self._products += wide.T @ wide

    def mean(self) -> FloatArray:
        """float32 (patches, dim): each patch's mean, drawn towards the mean of all where frames are few."""
        own = self._sums / self.frames
        belief = self.frames / (self.frames + _HALF_BELIEVED_FRAMES)
        return np.asarray(belief * own + (1 - belief) * own.mean(axis=0), np.float32)

    def covariance(self, mean: FloatArray) -> Float64s:
        """(dim, dim), about a mean of each patch."""
        wide = mean.astype(np.float64)
        crossed = self._sums.T @ wide
        count = self.frames * len(self._sums)
        return np.asarray((self._products - crossed - crossed.T + self.frames * (wide.T @ wide)) / count)


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """analysis, synthesis: float32 (dim, columns), in falling order of variance. variances: float64, of all dim."""

    analysis: FloatArray
    synthesis: FloatArray
    variances: Float64s


def learn_basis(covariance: Float64s, columns: int, sensitivity: FloatArray | None = None) -> Basis:
    """The `columns` directions of most variance, weighted by `sensitivity` (dim, dim), symmetric, where it is given.

    Raises BundleError for a sensitivity of another model's width.
    """
    if sensitivity is None:
        variances, vectors = np.linalg.eigh(covariance)
        chosen = np.ascontiguousarray(vectors[:, ::-1][:, :columns], np.float32)
        return Basis(chosen, chosen, np.maximum(variances[::-1], 0))
    dim = len(covariance)
    if sensitivity.shape != (dim, dim):
        raise BundleError(f"the sensitivity is {sensitivity.shape}, this model's embeddings are {dim} wide")
    weights = sensitivity.astype(np.float64) * ((1 - _EVEN_SHARE) * dim / np.trace(sensitivity))
    weights[np.diag_indices(dim)] += _EVEN_SHARE
    lower = np.linalg.cholesky((weights + weights.T) / 2)
    variances, vectors = np.linalg.eigh(lower.T @ covariance @ lower)
    chosen_vectors = vectors[:, ::-1][:, :columns]
    analysis = lower @ chosen_vectors
    synthesis = np.linalg.solve(lower.T, chosen_vectors)
    return Basis(analysis.astype(np.float32), synthesis.astype(np.float32), np.maximum(variances[::-1], 0))


def step_for(variances: Float64s, sqnr_db: float) -> float:
    """The quantiser's step at which the error is `sqnr_db` below the variance: reverse water-filling.

    A direction with less variance than the water level is not sent, and errs by its whole variance; every other errs by
    the level, which for a uniform quantiser is step^2 / 12. Source: Cover and Thomas, Elements of Information Theory,
    10.3.3.
    """
    wanted = float(variances.sum()) * 10 ** (-sqnr_db / 10)
    ordered = np.sort(variances)
    below = np.concatenate(([0.0], np.cumsum(ordered)))
    for count, smaller in enumerate(below[:-1]):
        level = (wanted - smaller) / (len(ordered) - count)
        if level <= ordered[count]:
            return float(np.sqrt(12 * max(level, 1e-20)))
    return float(np.sqrt(12 * ordered[-1]))


def moments_of(frames: Iterable[FloatArray], patches: int, dim: int) -> Moments:
    moments = Moments(patches, dim)
    for frame in frames:
        moments.add(frame)
    return moments
