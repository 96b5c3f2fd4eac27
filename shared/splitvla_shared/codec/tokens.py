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
_CAPS = np.array((_DIRECT, PAIR_CAP, QUAD_CAP), np.int32)
_PAIR_WEIGHTS, _QUAD_WEIGHTS = (
    np.array([(cap + 1) ** power for power in range(count - 1, -1, -1)], np.uint8)
    for cap, count in ((PAIR_CAP, 2), (QUAD_CAP, 4))
)
PAIR_PARTS = (np.arange(PAIR_TOKENS)[:, None] // _PAIR_WEIGHTS % (PAIR_CAP + 1)).astype(np.uint8)
QUAD_PARTS = (np.arange(QUAD_TOKENS)[:, None] // _QUAD_WEIGHTS % (QUAD_CAP + 1)).astype(np.uint8)


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

    @property
    def caps(self) -> Int32:
        """int32 (columns,): the magnitude that a token names no more, or only as "so much or more"."""
        return np.repeat(_CAPS, (self.singles, 2 * self.pairs, 4 * self.quads))

    def cut(self, values: Ints) -> tuple[Ints, Ints, Ints]:
        """(rows, columns) to the columns that stand alone, by twos and by fours."""
        pairs_end = self.singles + 2 * self.pairs
        return values[:, : self.singles], values[:, self.singles : pairs_end], values[:, pairs_end:]

    def largest(self, values: Ints) -> Ints:
        """(rows, columns) to (rows, groups): the largest of each group."""
        singles, pairs, quads = self.cut(values)
        halves = np.maximum(quads[:, 0::2], quads[:, 1::2])
        return np.concatenate(
            (
                singles,
                np.maximum(pairs[:, 0::2], pairs[:, 1::2]),
                np.maximum(halves[:, 0::2], halves[:, 1::2]),
            ),
            axis=1,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """first: uint8 (rows, groups). excess: what the pairs, then the quads could not say; `pair_excesses` are of pairs.

    bits: signs of all numbers but zero in row order, then the plain bits of singles and excesses.
    """

    first: Ints
    excess: Ints
    pair_excesses: int
    bits: Bits


def tokenize(numbers: Int32, sizes: Int32, grouping: Grouping) -> Tokens:
    """numbers: int32 (rows, columns). sizes: their magnitudes. Raises CodecError for one above MAX_MAGNITUDE."""
    if sizes.size and int(sizes.max()) > MAX_MAGNITUDE:
        raise CodecError(
            f"a coefficient is {sizes.max()} steps large, {MAX_MAGNITUDE} is the most; "
            "send this frame exact, and calibrate again with frames like it"
        )
    capped = np.minimum(sizes, grouping.caps)
    beyond = grouping.cut(capped == grouping.caps)
    first, pairs, quads = grouping.cut(capped.astype(np.uint8))
    singles, pair_excess, quad_excess = (part[above] for part, above in zip(grouping.cut(sizes), beyond, strict=True))
    long_tokens = _TOKENS.take(singles)
    first[beyond[0]] = long_tokens
    excess = np.concatenate((pair_excess - PAIR_CAP, quad_excess - QUAD_CAP))
    excess_tokens = _TOKENS.take(excess)
    widths = SINGLE_WIDTHS.take(np.concatenate((long_tokens, excess_tokens)))
    flat = numbers.reshape(-1)
    signs = (flat < 0).take(np.flatnonzero(flat != 0)).view(np.uint8)
    return Tokens(
        np.concatenate((first, _joint(pairs, _PAIR_WEIGHTS), _joint(quads, _QUAD_WEIGHTS)), axis=1),
        excess_tokens,
        len(pair_excess),
        np.concatenate((signs, spread(np.concatenate((singles, excess)), widths))),
    )


class Detokenizer:
    """Puts numbers together again, in the order in which a decoder learns of them: first, excess, bits."""

    def __init__(self, first: npt.NDArray[np.uint8], grouping: Grouping) -> None:
        """first: (rows, groups) tokens within their alphabets; a token beyond is the caller's tables' fault."""
        pairs_start, quads_start = grouping.singles, grouping.singles + grouping.pairs
        pairs = PAIR_PARTS.view("<u2").take(first[:, pairs_start:quads_start]).view(np.uint8)
        quads = QUAD_PARTS.view("<u4").take(first[:, quads_start:]).view(np.uint8)
        self._numbers = np.concatenate((first[:, :pairs_start], pairs, quads), axis=1, dtype=np.int32)
        self._kinds = grouping.cut(self._numbers)
        self._beyond = grouping.cut(self._numbers >= grouping.caps)
        self._long, self.pair_excesses, quad_excesses = (int(np.count_nonzero(each)) for each in self._beyond)
        self.excesses = self.pair_excesses + quad_excesses

    def bits_needed(self, excess: Ints) -> int:
        """How many bits complete the numbers, known before any is read. excess: the tokens, `excesses` of them."""
        tokens = np.concatenate((self._kinds[0][self._beyond[0]], excess))
        self._bases, self._widths = SINGLE_BASES.take(tokens), SINGLE_WIDTHS.take(tokens)
        self._signed = np.flatnonzero(self._numbers != 0)  # what is added later makes no zero
        return len(self._signed) + int(self._widths.sum())

    def numbers(self, bits: Bits) -> Int32:
        """int32 (rows, columns). bits: exactly as many as `bits_needed` said."""
        found = self._bases + gather(bits[len(self._signed) :], self._widths).astype(np.int32)
        singles, pairs, quads = np.split(found, (self._long, self._long + self.pair_excesses))
        self._kinds[0][self._beyond[0]] = singles
        self._kinds[1][self._beyond[1]] += pairs
        self._kinds[2][self._beyond[2]] += quads
        flat = self._numbers.reshape(-1)
        negative = self._signed.compress(bits[: len(self._signed)].view(np.bool_))
        flat[negative] = -flat[negative]
        return self._numbers


def _joint(parts: npt.NDArray[np.uint8], weights: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """One token for every len(weights) columns: the sum of weight x part, 80 at most.

    All columns of a group are multiplied and added at once, as the bytes of one whole number, whose highest byte is the
    sum: the bytes below are too small to carry into it.
    """
    word = np.dtype(f"<u{len(weights)}")
    factor = weights[::-1].copy().view(word)
    products = parts.view(word) * factor
    products >>= 8 * (len(weights) - 1)
    joint: npt.NDArray[np.uint8] = products.astype(np.uint8)
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
