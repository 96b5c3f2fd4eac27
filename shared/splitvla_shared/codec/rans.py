"""Range asymmetric numeral systems (rANS) over many interleaved lanes, in numpy and integers alone.

Rules of this file:
 - Every number is an integer: two machines that hold the same tables read the same tokens from the same bytes.
 - Token i of a pass belongs to lane i mod L, step i div L. All lanes take one step together, which is one row of numpy.
 - The decoder never reads past the words, whatever they are; the caller's checksum says whether they were whole.

A lane's state lies in 2^15..2^31 - 1 and gives or takes whole 16-bit words; probabilities are twelfths of a bit: counts
out of 2^12. The states begin with 15 bits of the sender's choice each, which carry bits that would be sent anyway: that
is what makes hundreds of lanes cheap. Source: Duda, arXiv:1311.2540; Giesen, arXiv:1402.3392 (interleaving).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from splitvla_shared.errors import CodecError

PRECISION = 12
TOTAL = 1 << PRECISION
SEED_BITS = 15  # that a lane's first state carries
LOWEST = 1 << SEED_BITS
WORD_BITS = 16
_COUNT_BITS, _TOKEN_BITS = 13, 7
MAX_TOKENS = 1 << _TOKEN_BITS
# As arrays: numpy converts a scalar anew in each of the hundreds of steps of a frame, which takes as long as the step.
_LOWEST, _WORD_BITS, _PRECISION, _SLOTS, _COUNTS, _OFFSET_SHIFT = (
    np.array(value, np.uint32)
    for value in (LOWEST, WORD_BITS, PRECISION, TOTAL - 1, (1 << _COUNT_BITS) - 1, _COUNT_BITS + _TOKEN_BITS)
)

UInt32 = npt.NDArray[np.uint32]
Ints = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """Probability tables of one alphabet a context. counts: uint32 (contexts, tokens), each row sums to 2^12.

    A count of zero is a token that can't be sent. `lookup` is what a decoder finds for (context, slot): offset in the
    token's range, token, and count, in one 32-bit word.
    """

    counts: UInt32
    starts: UInt32
    lookup: UInt32

    @classmethod
    def of(cls, counts: Ints) -> Tables:
        """Raises ValueError when a row is no distribution out of 2^12."""
        whole = np.ascontiguousarray(counts, dtype=np.uint32)
        if whole.ndim != 2 or whole.shape[1] > MAX_TOKENS or (whole.sum(axis=1, dtype=np.uint64) != TOTAL).any():
            raise ValueError(f"probability tables of shape {whole.shape} do not sum to {TOTAL} in every row")
        starts = (np.cumsum(whole, axis=1) - whole).astype(np.uint32)
        tokens = np.arange(whole.shape[1], dtype=np.uint32)
        lookup = np.empty((len(whole), TOTAL), np.uint32)
        slots = np.arange(TOTAL, dtype=np.uint32)
        for row in range(len(whole)):
            token = np.repeat(tokens, whole[row])
            offset = slots - starts[row][token]
            lookup[row] = whole[row][token] | token << np.uint32(_COUNT_BITS) | offset << _OFFSET_SHIFT
        return cls(whole, starts, lookup.reshape(-1))


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """Tokens that are coded one after the other, and the context of each; both one-dimensional, equally long."""

    tokens: Ints
    contexts: Ints


def encode(tables: Tables, passes: Sequence[Pass], lanes: int, seeds: Ints) -> tuple[UInt32, npt.NDArray[np.uint16]]:
    """Final states (lanes,) and the 16-bit words, in the order in which `Decoder` reads them.

    seeds: `lanes` numbers of 15 bits, which the decoder gets back in the end. Every token must have a count.
    """
    state = seeds.astype(np.uint32)
    state |= np.uint32(LOWEST)
    full, quotient = np.empty(lanes, np.bool_), np.empty(lanes, np.uint32)
    words: list[npt.NDArray[np.uint16]] = []
    for each in reversed(passes):
        where = each.contexts.astype(np.intp)
        where *= tables.counts.shape[1]
        where += each.tokens
        counts, starts = tables.counts.reshape(-1).take(where), tables.starts.reshape(-1).take(where)
        limits = counts << np.uint32(31 - PRECISION)
        rest = np.uint32(TOTAL) - counts
        for first in range((len(where) - 1) // lanes * lanes, -1, -lanes):
            step = slice(first, first + lanes)
            count = counts[step]
            now, part = state[: len(count)], quotient[: len(count)]
            (large,) = np.greater_equal(now, limits[step], out=full[: len(count)]).nonzero()
            if len(large):
                states = now[large]
                words.append(states.astype(np.uint16))
                states >>= _WORD_BITS
                now[large] = states
            # state = state div count * 2^12 + state mod count + start
            np.floor_divide(now, count, out=part)
            part *= rest[step]
            part += starts[step]
            now += part
    words.reverse()
    return state, np.concatenate(words) if words else np.empty(0, np.uint16)


class Decoder:
    """Takes tokens off the states of one payload. Mutable: the states and the place among the words."""

    def __init__(self, tables: Tables, state: UInt32, words: npt.NDArray[np.uint16]) -> None:
        """Raises CodecError on a state that no encoder leaves behind."""
        if len(state) and not (int(state.min()) >= LOWEST and int(state.max()) < 1 << 31):
            raise CodecError("the payload holds a coder state that no encoder writes; damaged on the way")
        self._tables = tables
        self._state = state
        # Zeros behind the words: a damaged payload may ask for more, and is found out by `finish`.
        self._words = np.concatenate((words.astype(np.uint32), np.zeros(len(state), np.uint32)))
        self._count = len(words)
        self._next = 0

    def take(self, contexts: Ints) -> npt.NDArray[np.uint8]:
        """The tokens of one pass, in the contexts given."""
        lanes, lookup = len(self._state), self._tables.lookup
        base = contexts.astype(np.intp)
        base <<= PRECISION
        found, scratch = np.empty(len(base), np.uint32), np.empty(lanes, np.uint32)
        for first in range(0, len(base), lanes):
            entry = found[first : first + lanes]
            state, part = self._state[: len(entry)], scratch[: len(entry)]
            slot = base[first : first + lanes]  # which nobody needs afterwards
            slot += np.bitwise_and(state, _SLOTS, out=part)
            lookup.take(slot, out=entry, mode="clip")
            state >>= _PRECISION
            state *= np.bitwise_and(entry, _COUNTS, out=part)
            state += np.right_shift(entry, _OFFSET_SHIFT, out=part)
            self._refill(state)
        found >>= np.uint32(_COUNT_BITS)
        return found.astype(np.uint8) & np.uint8(MAX_TOKENS - 1)

    def finish(self) -> UInt32:
        """The seeds, 15 bits a lane. Raises CodecError unless exactly all words were read."""
        if self._next != self._count or (len(self._state) and int(self._state.max()) >= 2 * LOWEST):
            raise CodecError(f"the payload's tokens end after {self._next} of {self._count} words; damaged on the way")
        return self._state & np.uint32(LOWEST - 1)

    def _refill(self, state: UInt32) -> None:
        (empty,) = (state < _LOWEST).nonzero()
        if not len(empty):
            return
        if self._next + len(empty) > self._count:
            raise CodecError(f"the payload's tokens need more than its {self._count} words; damaged on the way")
        small = state[empty]
        small <<= _WORD_BITS
        small |= self._words[self._next : self._next + len(empty)]
        state[empty] = small
        self._next += len(empty)
