"""The mean of a robot's embeddings and the basis in which they are fewest: Karhunen-Loeve, by eigendecomposition.

With a sensitivity M (how much the backbone reacts to an error in each direction) the basis is that of L^T x, where
M = L L^T: a step then costs the same everywhere in what the backbone sees, not in what the embedding measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitvla_shared.codec.sensitivity import Sensitivity
from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import FloatArray

Float64s = npt.NDArray[np.float64]

# A patch's own mean is believed as far as there are frames: with so many, half.
_HALF_BELIEVED_FRAMES = 8
# Of the sensitivity that is the same in all directions, and in all patches: what the measured frames did not depend on
# the next may.
_EVEN_SHARE = 0.1


def mean_of(frames: Sequence[FloatArray]) -> FloatArray:
    """float32 (patches, dim): each patch's mean, drawn towards the mean of all where frames are few."""
    own = np.zeros(frames[0].shape)
    for frame in frames:
        own += frame
    own /= len(frames)
    belief = len(frames) / (len(frames) + _HALF_BELIEVED_FRAMES)
    return np.asarray(belief * own + (1 - belief) * own.mean(axis=0), np.float32)


def covariance_of(frames: Iterable[FloatArray], dim: int) -> Float64s:
    """(dim, dim), of frames less their mean; a frame is (patches, dim)."""
    total, rows = np.zeros((dim, dim)), 0
    for frame in frames:
        wide = frame.astype(np.float64)
        total += wide.T @ wide
        rows += len(wide)
    return np.asarray(total / rows)


def patch_weights(sensitivity: Sensitivity | None, patches: int) -> FloatArray | None:
    """By what each patch is multiplied so that an error counts the same in all: float32 (patches,), or None.

    Raises BundleError for a sensitivity of another number of patches.
    """
    if sensitivity is None or sensitivity.patches is None:
        return None
    if len(sensitivity.patches) != patches:
        raise BundleError(f"the sensitivity is of {len(sensitivity.patches)} patches, this model has {patches}")
    counts = (1 - _EVEN_SHARE) * sensitivity.patches / sensitivity.patches.mean() + _EVEN_SHARE
    return np.asarray(np.sqrt(counts), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """analysis, synthesis: float32 (dim, columns), in falling order of variance. variances: float64, of all dim."""

    analysis: FloatArray
    synthesis: FloatArray
    variances: Float64s


def learn_basis(covariance: Float64s, columns: int, sensitivity: Sensitivity | None = None) -> Basis:
    """The `columns` directions of most variance, weighted by the directions of `sensitivity` where it is given.

    Raises BundleError for a sensitivity of another model's width.
    """
    if sensitivity is None:
        variances, vectors = np.linalg.eigh(covariance)
        chosen = np.ascontiguousarray(vectors[:, ::-1][:, :columns], np.float32)
        return Basis(chosen, chosen, np.maximum(variances[::-1], 0))
    dim = len(covariance)
    directions = sensitivity.directions.astype(np.float64)
    if directions.shape != (dim, dim):
        raise BundleError(f"the sensitivity is {directions.shape}, this model's embeddings are {dim} wide")
    weights = directions * ((1 - _EVEN_SHARE) * dim / np.trace(directions))
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
