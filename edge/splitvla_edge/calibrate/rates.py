"""Steps, groups and probability tables of a rung, counted on calibration frames.

Rules of this file: everything counted here goes into the tables as integers; a table never rules a token out, because
the next frame may hold what no calibration frame held.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from splitvla_shared.codec import rans
from splitvla_shared.codec.model import DEAD_ZONE, Reference, RungModel, departure, predicted_numbers
from splitvla_shared.codec.tables import (
    ALPHABETS,
    CONTEXTS,
    EXCESS_CONTEXT,
    FIRST_CONTEXT,
    JOINT_SCALES,
    MAX_LANES,
    REFERENCE_LEVELS,
    ROW_CONTEXT,
    SCALE_ZERO,
    SINGLE_SCALES,
    RungTables,
)
from splitvla_shared.codec.tokens import (
    PAIR_PARTS,
    QUAD_PARTS,
    SINGLE_BASES,
    SINGLE_WIDTHS,
    Grouping,
    Int32,
    tokenize,
)
from splitvla_shared.nouns import FloatArray

Float64s = npt.NDArray[np.float64]
Clip = Sequence[FloatArray]  # coefficients less the patch means, (rows, columns) a frame, in order of time

# A coefficient whose deviation is below this share of a step is zero nearly always: it is left out.
_LEAST_DEVIATION = 0.22
# Expected magnitudes above which a column has a token alone, and above which two share one.
_SINGLE_FROM, _PAIR_FROM = 3.0, 0.3
# A lane for every so many bytes: it costs half a byte, and the time of a frame falls until there are far more.
_LANE_BYTES = 24
_GAINS = (256, 240, 224, 192, 128, 64, 0)  # best first where two are as good
_PRIOR_WEIGHT = 48.0  # tokens' worth of the parametric prior in every table
_LARGEST_SCALE = 255


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """A rung's numbers of all clips: as key frames, and in closed loop as differences from the frame before."""

    keys: list[Int32]
    differences: list[tuple[Int32, Int32]]  # residual, and the numbers of the frame before


def columns_for(variances: Float64s, step: float, most: int) -> int:
    """How many leading coefficients are worth sending at this step; at least 4."""
    worth = int(np.count_nonzero(np.sqrt(variances) >= _LEAST_DEVIATION * step))
    return int(np.clip(worth, min(4, most), most))


def learn_rung(name: str, step: float, columns: int, clips: Sequence[Clip]) -> tuple[RungTables, Sequences]:
    """Everything of a rung but the shared probability tables."""
    keys = [key_numbers(frame[:, :columns], step) for clip in clips for frame in clip]
    of_rows = np.mean([np.abs(each) for each in keys], axis=0)
    magnitudes = of_rows.mean(axis=0)
    grouping = _grouping(magnitudes)
    columns = grouping.columns
    keys = [each[:, :columns] for each in keys]
    gains = _gains(clips, step, columns)
    differences = closed_loop(clips, step, gains)
    residual = _mean_magnitude([each[0] for each in differences], magnitudes[:columns])
    rung = RungTables(
        name=name,
        step=float(np.float32(step)),
        lanes=_lanes(of_rows[:, :columns]),
        grouping=grouping,
        key_scales=_scales(magnitudes[:columns], grouping),
        predicted_scales=_scales(residual, grouping),
        gains=gains,
        reference_offsets=np.zeros((3, REFERENCE_LEVELS), np.int8),
    )
    offsets = _reference_offsets(rung, differences)
    learned = RungTables(
        rung.name, rung.step, rung.lanes, grouping, rung.key_scales, rung.predicted_scales, gains, offsets
    )
    return learned, Sequences(keys, differences)


def key_numbers(coefficients: FloatArray, step: float) -> Int32:
    scaled = coefficients * np.float32(1 / step)
    return departure(scaled, np.rint(scaled).astype(np.int32))


def closed_loop(clips: Sequence[Clip], step: float, gains: npt.NDArray[np.uint16]) -> list[tuple[Int32, Int32]]:
    """Residual and reference of every frame but the first of each clip."""
    found = []
    factors = gains.astype(np.int32)
    for clip in clips:
        numbers: Int32 | None = None
        for frame in clip:
            scaled = frame[:, : len(gains)] * np.float32(1 / step)
            if numbers is None:
                numbers = key_numbers(frame[:, : len(gains)], step)
                continue
            prediction = predicted_numbers(numbers, factors)
            difference = departure(scaled, np.rint(scaled).astype(np.int32), prediction)
            found.append((difference, numbers))
            numbers = prediction + difference
    return found


class TableCounts:
    """Counts how often each token came in each context. Mutable: the counts."""

    def __init__(self) -> None:
        self._counts = np.zeros((CONTEXTS, max(ALPHABETS)))

    def add(self, rung: RungTables, sequences: Sequences) -> None:
        model = RungModel.of(rung)
        for numbers in sequences.keys:
            self._add(model, numbers, None)
        for residual, before in sequences.differences:
            self._add(model, residual, Reference.of(0, 0, before))

    def tables(self) -> npt.NDArray[np.uint32]:
        """uint32 (CONTEXTS, alphabet), rows out of 2^12, no token of an alphabet at zero."""
        out = np.zeros((CONTEXTS, max(ALPHABETS)), np.uint32)
        for context, size in enumerate(ALPHABETS):
            wanted = self._counts[context, :size] + _PRIOR_WEIGHT * _prior(context)
            out[context, :size] = _out_of_total(wanted)
        return out

    def _add(self, model: RungModel, residual: Int32, reference: Reference | None) -> None:
        sizes = np.abs(residual)
        levels = model.levels(sizes, predicted=reference is not None)
        tokens = tokenize(residual, sizes, model.rung.grouping)
        self._count(np.full(len(levels), ROW_CONTEXT), levels)
        self._count(model.contexts(levels, reference).reshape(-1), tokens.first.reshape(-1))
        pairs = tokens.pair_excesses
        self._count(np.full(pairs, EXCESS_CONTEXT), tokens.excess[:pairs])
        self._count(np.full(len(tokens.excess) - pairs, EXCESS_CONTEXT + 1), tokens.excess[pairs:])

    def _count(self, contexts: Any, tokens: Any) -> None:
        width = self._counts.shape[1]
        flat = np.bincount(contexts.astype(np.int64) * width + tokens, minlength=self._counts.size)
        self._counts += flat.reshape(self._counts.shape)


def _grouping(magnitudes: Float64s) -> Grouping:
    """Groups of columns, cut where the expected magnitude falls; up to three of the last columns are left out."""
    count = len(magnitudes)
    smallest = np.minimum.accumulate(magnitudes)  # variances fall, mean magnitudes need not
    singles = int(np.count_nonzero(smallest >= _SINGLE_FROM))
    pairs = (int(np.count_nonzero(smallest >= _PAIR_FROM)) - singles) // 2
    quads, rest = divmod(count - singles - 2 * pairs, 4)
    if rest and not quads:  # a handful of columns in all
        return Grouping(singles + rest, pairs, 0) if not pairs else Grouping(singles, pairs + rest // 2, 0)
    return Grouping(singles, pairs, quads)


def _scales(magnitudes: Float64s, grouping: Grouping) -> npt.NDArray[np.uint8]:
    """Half octaves of each group's mean expected magnitude, uint8 (groups,)."""
    pairs_end = grouping.singles + 2 * grouping.pairs
    means = np.concatenate(
        (
            magnitudes[: grouping.singles],
            magnitudes[grouping.singles : pairs_end].reshape(-1, 2).mean(axis=1),
            magnitudes[pairs_end:].reshape(-1, 4).mean(axis=1),
        )
    )
    halves = np.rint(2 * np.log2(np.maximum(means, 1e-9))) + SCALE_ZERO
    return np.asarray(np.clip(halves, 0, _LARGEST_SCALE), np.uint8)


def _gains(clips: Sequence[Clip], step: float, columns: int) -> npt.NDArray[np.uint16]:
    """How much of the frame before is expected again, per column, out of 2^8: the candidate with the fewest bits.

    Not the least-squares gain: what does not move should be predicted exactly, whatever the rest does.
    """
    bits = np.zeros((len(_GAINS), columns))
    for clip in clips:
        numbers = [key_numbers(frame[:, :columns], step) for frame in clip]
        for before, after in itertools.pairwise(numbers):
            for index, gain in enumerate(_GAINS):
                residual = after - predicted_numbers(before, np.full(columns, gain, np.int32))
                bits[index] += np.log2(1 + 2 * np.abs(residual)).sum(axis=0)
    return np.asarray(np.array(_GAINS, np.uint16)[bits.argmin(axis=0)])


def _mean_magnitude(residuals: Sequence[Int32], otherwise: Float64s) -> Float64s:
    """Of differences, per column; where there is no frame after another, that of key frames."""
    if not residuals:
        return otherwise
    return np.asarray(np.mean([np.abs(each).mean(axis=0) for each in residuals], axis=0))


def _reference_offsets(rung: RungTables, differences: Sequence[tuple[Int32, Int32]]) -> npt.NDArray[np.int8]:
    """Half octaves by which a group differs from its columns' expectation, by kind and by the reference's magnitude."""
    found, expected = np.full((3, REFERENCE_LEVELS), 0.5), np.full((3, REFERENCE_LEVELS), 0.5)
    scale = 2.0 ** ((rung.predicted_scales.astype(np.float64) - SCALE_ZERO) / 2)
    widths = np.array((1, 2, 4))[rung.kinds]
    for residual, before in differences:
        seen = rung.grouping.largest(np.minimum(np.abs(before), REFERENCE_LEVELS - 1))
        sums = _group_sums(np.abs(residual), rung.grouping)
        where = rung.kinds * REFERENCE_LEVELS + seen
        found += np.bincount(where.reshape(-1), sums.reshape(-1), found.size).reshape(found.shape)
        usual = np.broadcast_to(scale * widths, where.shape)
        expected += np.bincount(where.reshape(-1), usual.reshape(-1), found.size).reshape(found.shape)
    return np.asarray(np.clip(np.rint(2 * np.log2(found / expected)), -16, 16), np.int8)


def _group_sums(sizes: Int32, grouping: Grouping) -> Any:
    rows, pairs_end = len(sizes), grouping.singles + 2 * grouping.pairs
    return np.concatenate(
        (
            sizes[:, : grouping.singles],
            sizes[:, grouping.singles : pairs_end].reshape(rows, -1, 2).sum(axis=2),
            sizes[:, pairs_end:].reshape(rows, -1, 4).sum(axis=2),
        ),
        axis=1,
    )


def _lanes(magnitudes: Float64s) -> int:
    """Of a key frame, whose bytes are estimated.

    magnitudes: mean ones, (rows, columns). A Laplace number of mean magnitude m takes log2(2 e m) bits, if m is large.
    """
    entropy_bits = float(np.log2(1 + 2 * np.e * magnitudes).sum())
    return int(np.clip(entropy_bits / (8 * _LANE_BYTES), 32, MAX_LANES))


def _prior(context: int) -> Float64s:
    """A distribution for a context of which little was seen: that of rounded Laplace numbers of the context's scale."""
    if context == ROW_CONTEXT:
        return np.full(ALPHABETS[context], 1 / ALPHABETS[context])
    if context < FIRST_CONTEXT:
        return _single_prior(1.5)
    kind, scale = _kind_and_scale(context)
    magnitude = 2.0 ** ((scale - SCALE_ZERO) / 2)
    if kind == 0:
        return _single_prior(magnitude)
    parts = (PAIR_PARTS, QUAD_PARTS)[kind - 1]
    cap = int(parts.max())
    one = _magnitude_prior(magnitude, cap + 1)
    one[cap] = max(1 - one[:cap].sum(), 1e-9)
    return np.asarray(one[parts].prod(axis=1))


def _kind_and_scale(context: int) -> tuple[int, int]:
    place = context - FIRST_CONTEXT
    if place < SINGLE_SCALES:
        return 0, place
    return 1 + (place - SINGLE_SCALES) // JOINT_SCALES, (place - SINGLE_SCALES) % JOINT_SCALES


def _single_prior(magnitude: float) -> Float64s:
    """Over the tokens of one number: each stands for 2^width magnitudes from its base on."""
    tail, first = _laplace(magnitude)
    starts = SINGLE_BASES.astype(np.float64)
    ends = starts + 2.0**SINGLE_WIDTHS
    with np.errstate(under="ignore"):
        prior = first * (tail ** np.maximum(starts - 1, 0) - tail ** np.maximum(ends - 1, 0))
    prior[0] = 1 - first
    return np.asarray(prior / prior.sum())


def _magnitude_prior(magnitude: float, count: int) -> Float64s:
    tail, first = _laplace(magnitude)
    prior = first * (1 - tail) * tail ** np.maximum(np.arange(count) - 1, 0)
    prior[0] = 1 - first
    return np.asarray(prior)


def _laplace(magnitude: float) -> tuple[float, float]:
    """Ratio of one magnitude's probability to the one before, and the probability of not being zero.

    For Laplace numbers of the scale at which rounding with our dead zone gives this mean magnitude, by bisection.
    """
    low, high = 1e-3, 1e8
    for _ in range(80):
        scale = (low * high) ** 0.5
        first, tail = np.exp(-DEAD_ZONE / scale), np.exp(-1 / scale)
        low, high = (scale, high) if first / (1 - tail) < magnitude else (low, scale)
    return float(tail), float(first)


def _out_of_total(wanted: Float64s) -> npt.NDArray[np.uint32]:
    """Whole counts, at least one each, that sum to 2^12."""
    spare = rans.TOTAL - len(wanted)
    exact = wanted / wanted.sum() * spare
    counts = np.floor(exact)
    rest = int(spare - counts.sum())
    counts[np.argsort(-(exact - counts), kind="stable")[:rest]] += 1
    return np.asarray(counts + 1, np.uint32)
