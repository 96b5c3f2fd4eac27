"""Whole numbers (rows, columns) as tokens for an entropy coder, and back; sparse columns share tokens by 2 and by 4.

Rules of this file:
 - Columns stand in falling order of size. The first `singles` have a token each, then come `pairs` of columns with one
   token for both, then `quads` with one for four: an entropy coder's time is a token's, whatever it says.
 - Tokens speak of magnitudes. A sign is one bit of its own behind them, because no table predicts it.
 - What a token is too small for follows as an *excess*, itself a token and some plain bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from splitvla_shared.codec.bits import Bits, gather, spread
from splitvla_shared.errors import CodecError

Ints = npt.NDArray[Any]
Int32 = npt.NDArray[np.int32]

# Magnitudes below 16 are their own token; above, a token names the leading two bits and their place.
_DIRECT, _DIRECT_BITS = 16, 4
MAGNITUDE_BITS = 20
MAX_MAGNITUDE = (1 << MAGNITUDE_BITS) - 1
SINGLE_TOKENS = _DIRECT + 2 * (MAGNITUDE_BITS - _DIRECT_BITS)
PAIR_CAP, QUAD_CAP = 7, 2  # the component that says "so much or more": its excess follows
PAIR_TOKENS, QUAD_TOKENS = (PAIR_CAP + 1) ** 2, (QUAD_CAP + 1) ** 4
_PAIR_WEIGHTS = np.array([PAIR_CAP + 1, 1], np.int16)
_QUAD_WEIGHTS = np.array([(QUAD_CAP + 1) ** power for power in (3, 2, 1, 0)], np.int16)
PAIR_PARTS = (np.arange(PAIR_TOKENS)[:, None] // _PAIR_WEIGHTS % (PAIR_CAP + 1)).astype(np.int32)
QUAD_PARTS = (np.arange(QUAD_TOKENS)[:, None] // _QUAD_WEIGHTS % (QUAD_CAP + 1)).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Grouping:
    """How many columns stand alone, by twos and by fours."""

    singles: int
    pairs: int
    quads: int

    @property
    def columns(self) -> int:
        return self.singles + 2 * self.pairs + 4 * self.quads

    @property
    def groups(self) -> int:
        """Tokens of one row."""
        return self.singles + self.pairs + self.quads

    def largest(self, values: Ints) -> Ints:
        """(rows, columns) to (rows, groups): the largest of each group."""
        pairs_end = self.singles + 2 * self.pairs
        pairs, quads = values[:, self.singles : pairs_end], values[:, pairs_end:]
        halves = np.maximum(quads[:, 0::2], quads[:, 1::2])
        return np.concatenate(
            (
                values[:, : self.singles],
                np.maximum(pairs[:, 0::2], pairs[:, 1::2]),
                np.maximum(halves[:, 0::2], halves[:, 1::2]),
            ),
            axis=1,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """first: (rows, groups). excess: what the pairs, then the quads could not say. `pair_excesses` of them are pairs'.

    bits: signs of all numbers but zero in row order, then the plain bits of singles and excesses.
    """

    first: Ints
    excess: Ints
    pair_excesses: int
    bits: Bits


def tokenize(numbers: Int32, grouping: Grouping) -> Tokens:
    """numbers: int32 (rows, columns), at most MAX_MAGNITUDE in size. Raises CodecError beyond."""
    sizes = np.abs(numbers)
    if sizes.size and int(sizes.max()) > MAX_MAGNITUDE:
        raise CodecError(
            f"a coefficient is {sizes.max()} steps large, {MAX_MAGNITUDE} is the most; "
            "send this frame exact, and calibrate again with frames like it"
        )
    singles, pairs, quads = _cut(sizes, grouping)
    single_tokens, single_widths = _split(singles)
    pair_parts, quad_parts = np.minimum(pairs, PAIR_CAP), np.minimum(quads, QUAD_CAP)
    first = np.concatenate(
        (
            single_tokens,
            _joint(pair_parts, _PAIR_WEIGHTS),
            _joint(quad_parts, _QUAD_WEIGHTS),
        ),
        axis=1,
    )
    pair_excess, quad_excess = _above(pairs, PAIR_CAP), _above(quads, QUAD_CAP)
    excess = np.concatenate((pair_excess, quad_excess))
    excess_tokens, excess_widths = _split(excess)
    values = np.concatenate((singles.reshape(-1), excess))
    widths = np.concatenate((single_widths.reshape(-1), excess_widths))
    (wide,) = np.nonzero(widths)
    flat = numbers.reshape(-1)
    signs = (flat[np.flatnonzero(flat != 0)] < 0).view(np.uint8)
    return Tokens(first, excess_tokens, len(pair_excess), np.concatenate((signs, spread(values[wide], widths[wide]))))


class Detokenizer:
    """Puts numbers together again, in the order in which a decoder learns of them: first, excess, bits."""

    def __init__(self, first: Ints, grouping: Grouping) -> None:
        """first: (rows, groups) tokens within their alphabets; a token beyond is the caller's tables' fault."""
        self._grouping = grouping
        pairs_start, quads_start = grouping.singles, grouping.singles + grouping.pairs
        rows = len(first)
        self._single_tokens = first[:, :pairs_start]
        self._pairs = PAIR_PARTS.take(first[:, pairs_start:quads_start], axis=0).reshape(rows, -1)
        self._quads = QUAD_PARTS.take(first[:, quads_start:], axis=0).reshape(rows, -1)
        self._long_pairs = np.flatnonzero(self._pairs == PAIR_CAP)
        self._long_quads = np.flatnonzero(self._quads == QUAD_CAP)
        self.pair_excesses = len(self._long_pairs)
        self.excesses = self.pair_excesses + len(self._long_quads)

    def bits_needed(self, excess: Ints) -> int:
        """How many bits complete the numbers, known before any is read. excess: the tokens, `excesses` of them."""
        self._singles, single_widths = _join(self._single_tokens)
        over, over_widths = _join(excess)
        self._widths = np.concatenate((single_widths.reshape(-1), over_widths))
        self._over = over
        nonzero = sum(int(np.count_nonzero(part)) for part in (self._single_tokens, self._pairs, self._quads))
        self._signs = nonzero
        return nonzero + int(self._widths.sum())

    def numbers(self, bits: Bits) -> Int32:
        """int32 (rows, columns). bits: exactly as many as `bits_needed` said."""
        values = np.concatenate((self._singles.reshape(-1), self._over))
        (wide,) = np.nonzero(self._widths)
        values[wide] += gather(bits[self._signs :], self._widths[wide]).astype(np.int32)
        singles = values[: self._singles.size].reshape(self._singles.shape)
        over = values[self._singles.size :]
        self._pairs.reshape(-1)[self._long_pairs] += over[: self.pair_excesses]
        self._quads.reshape(-1)[self._long_quads] += over[self.pair_excesses :]
        numbers = np.concatenate((singles, self._pairs, self._quads), axis=1)
        flat = numbers.reshape(-1)
        negative = np.flatnonzero(flat != 0).compress(bits[: self._signs].view(np.bool_))
        flat[negative] = -flat[negative]
        return numbers


def _cut(sizes: Ints, grouping: Grouping) -> tuple[Ints, Ints, Ints]:
    pairs_end = grouping.singles + 2 * grouping.pairs
    return sizes[:, : grouping.singles], sizes[:, grouping.singles : pairs_end], sizes[:, pairs_end:]


def _above(sizes: Ints, cap: int) -> Ints:
    """What sizes of at least `cap` have above it, in row order."""
    flat = sizes.reshape(-1)
    return flat[np.flatnonzero(flat >= cap)] - cap


def _joint(parts: Ints, weights: Ints) -> Ints:
    """One number for every len(weights) columns."""
    small = parts.astype(np.int16)
    step = len(weights)
    joint: Ints = small[:, 0::step] * weights[0]
    for index in range(1, step):
        joint += small[:, index::step] * weights[index]
    return joint


def _token_tables() -> tuple[Int32, Int32]:
    """For each token of a single magnitude: the smallest magnitude that it means, and how many plain bits follow."""
    tokens = np.arange(SINGLE_TOKENS)
    top = _DIRECT_BITS + np.maximum(tokens - _DIRECT, 0) // 2
    long = tokens >= _DIRECT
    bases = np.where(long, (2 + (tokens - _DIRECT) % 2) << (top - 1), tokens)
    return bases.astype(np.int32), np.where(long, top - 1, 0).astype(np.int32)


SINGLE_BASES, SINGLE_WIDTHS = _token_tables()
# The token of every magnitude: one look instead of a search, of which the small magnitudes stay in a core's cache.
_TOKENS = np.repeat(np.arange(SINGLE_TOKENS, dtype=np.uint8), np.diff(SINGLE_BASES, append=MAX_MAGNITUDE + 1))


def _split(sizes: Ints) -> tuple[Ints, Ints]:
    """Tokens and the number of plain bits of magnitudes; the plain bits are the lowest of the magnitude itself."""
    if not sizes.size or int(sizes.max()) < _DIRECT:
        return sizes.astype(np.int16), np.zeros(sizes.shape, np.int16)
    tokens = _TOKENS.take(sizes)
    return tokens.astype(np.int16), SINGLE_WIDTHS.take(tokens)


def _join(tokens: Ints) -> tuple[Int32, Int32]:
    """The smallest magnitudes that tokens mean, and the number of plain bits that complete them."""
    return SINGLE_BASES.take(tokens), SINGLE_WIDTHS.take(tokens)
