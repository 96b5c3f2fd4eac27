"""Action tokens to numbers: de-tokenising, and un-normalising with a dataset's statistics.

Source: `modeling_prismatic.py` (predict_action) of the OpenVLA checkpoint, and `action_tokenizer.py` of openvla.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from splitvla_shared.errors import BundleError, ObservationError
from splitvla_shared.nouns import ActionArray


@dataclass(frozen=True, slots=True)
class Detokenized:
    """normalized: float64 in [-1, 1], one an id. clipped: indices of ids that are no action token."""

    normalized: ActionArray
    clipped: tuple[int, ...]


def action_ids(vocab_size: int, bins: int) -> range:
    """The `bins` token ids below `vocab_size` that mean an action."""
    return range(vocab_size - bins, vocab_size)


@functools.lru_cache(maxsize=4)
def _bin_centers(bins: int) -> ActionArray:
    edges = np.linspace(-1.0, 1.0, bins)
    centers: ActionArray = (edges[:-1] + edges[1:]) / 2.0
    centers.setflags(write=False)
    return centers


def detokenize(ids: Sequence[int], *, vocab_size: int, bins: int) -> Detokenized:
    """Token ids to normalised actions, exactly as the reference does it, with out-of-range ids marked.

    `bins` edges give `bins - 1` centres, so the two lowest ids share a centre; ids outside the `bins` ids below
    `vocab_size` are clipped to the nearest centre as the reference clips them, and listed in `clipped`.
    """
    array = np.asarray(ids, dtype=np.int64)
    index = np.clip(vocab_size - array - 1, 0, bins - 2)
    outside = (array >= vocab_size) | (array < vocab_size - bins)
    return Detokenized(_bin_centers(bins)[index], tuple(int(i) for i in np.flatnonzero(outside)))


@dataclass(frozen=True, slots=True)
class ActionStatistics:
    """One dataset's q01, q99 and mask, each of length `dims`; dimensions with mask False are left normalised."""

    key: str
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    mask: npt.NDArray[np.bool_]

    @property
    def dims(self) -> int:
        return len(self.low)

    @property
    def still(self) -> npt.NDArray[np.bool_]:
        """(dims,): True where the range is empty, so that no token means any motion."""
        empty: npt.NDArray[np.bool_] = self.high == self.low
        return self.mask & empty

    def unnormalize(self, normalized: ActionArray) -> ActionArray:
        """(…, dims) in [-1, 1] to the robot's units, float64."""
        scaled = 0.5 * (normalized + 1) * (self.high - self.low) + self.low
        return np.where(self.mask, scaled, normalized)

    def normalize(self, actions: ActionArray) -> ActionArray:
        """The inverse, for (…, dims) in the robot's units; a dimension without a range becomes 0."""
        width = self.high - self.low
        scaled = 2.0 * (actions - self.low) / np.where(width == 0.0, 1.0, width) - 1.0
        return np.where(self.mask, np.where(width == 0.0, 0.0, scaled), actions)


def parse_statistics(norm_stats: Mapping[str, Any]) -> dict[str, ActionStatistics]:
    """Read `norm_stats` (config.json) or `dataset_statistics.json`. Raises BundleError naming the key and field."""
    if not isinstance(norm_stats, Mapping) or not norm_stats:
        raise BundleError("the checkpoint has no norm_stats and no dataset_statistics.json: actions can't be scaled")
    return {key: _parse_one(key, entry) for key, entry in norm_stats.items()}


def _parse_one(key: str, entry: Any) -> ActionStatistics:
    action = entry.get("action") if isinstance(entry, Mapping) else None
    if not isinstance(action, Mapping):
        raise BundleError(f"statistics of {key!r} have no 'action' entry")
    try:
        low = np.asarray(action["q01"], dtype=np.float64)
        high = np.asarray(action["q99"], dtype=np.float64)
        mask = np.asarray(action.get("mask", [True] * len(low)), dtype=np.bool_)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"statistics of {key!r}: q01, q99 or mask is missing or not a list ({error})") from error
    if low.ndim != 1 or not low.size or low.shape != high.shape or low.shape != mask.shape:
        raise BundleError(f"statistics of {key!r}: q01 {low.shape}, q99 {high.shape}, mask {mask.shape} must agree")
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise BundleError(f"statistics of {key!r}: q01 or q99 is not finite")
    return ActionStatistics(key, low, high, mask)


def select_statistics(statistics: Mapping[str, ActionStatistics], key: str | None) -> ActionStatistics:
    """The statistics for `--unnorm-key`; without a key only where there is a single set."""
    names = ", ".join(sorted(statistics))
    if key is None:
        if len(statistics) == 1:
            return next(iter(statistics.values()))
        raise ObservationError(f"this model has several action statistics; choose one with --unnorm-key: {names}")
    if key not in statistics:
        raise ObservationError(f"unknown unnorm key {key!r}; this model has: {names}")
    return statistics[key]
