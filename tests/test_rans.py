"""The entropy coder's format is whole numbers: a decoder of a few plain lines reads what numpy wrote."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitvla_shared.codec import rans
from splitvla_shared.codec.bits import gather, gather_even, spread, spread_even
from splitvla_shared.errors import CodecError
from tests.codec_tables import formula_counts

TABLES = rans.Tables.of(formula_counts())


def plain_decode(state: list[int], words: list[int], contexts: list[int]) -> tuple[list[int], list[int]]:
    """Straight from docs/wire.md, one lane and one token at a time, in Python's own integers."""
    counts, found, queue = TABLES.counts.tolist(), [], list(words)
    for first in range(0, len(contexts), len(state)):
        step = contexts[first : first + len(state)]
        for lane, context in enumerate(step):
            slot, token, start = state[lane] % 4096, 0, 0
            while slot >= start + counts[context][token]:
                start += counts[context][token]
                token += 1
            found.append(token)
            state[lane] = counts[context][token] * (state[lane] // 4096) + slot - start
        for lane in range(len(step)):
            if state[lane] < 1 << 15:
                state[lane] = state[lane] << 16 | queue.pop(0)
    assert not queue
    return found, [number - (1 << 15) for number in state]


def draw(seed: int, count: int) -> rans.Pass:
    rng = np.random.default_rng(seed)
    contexts = rng.integers(0, len(TABLES.counts), count)
    slots = rng.integers(0, rans.TOTAL, count)
    ends = np.cumsum(TABLES.counts, axis=1)[contexts]
    return rans.Pass((slots[:, None] >= ends).sum(axis=1, dtype=np.uint8), contexts)


@pytest.mark.parametrize(("lanes", "count"), [(1, 50), (8, 1000), (64, 63), (32, 0)])
def test_plain_integers_read_what_numpy_wrote(lanes: int, count: int) -> None:
    each, seeds = draw(1, count), np.arange(lanes) * 77 % (1 << 15)
    state, words = rans.encode(TABLES, (each,), lanes, seeds)
    tokens, carried = plain_decode(state.tolist(), words.tolist(), each.contexts.tolist())
    assert tokens == each.tokens.tolist()
    assert carried == seeds.tolist()


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.lists(st.integers(0, 300), max_size=4))
def test_passes_and_seeds_come_back(seed: int, lanes: int, sizes: list[int]) -> None:
    passes = [draw(seed + index, size) for index, size in enumerate(sizes)]
    seeds = np.random.default_rng(seed).integers(0, 1 << 15, lanes)
    decoder = rans.Decoder(TABLES, *rans.encode(TABLES, passes, lanes, seeds))
    for each in passes:
        np.testing.assert_array_equal(decoder.take(each.contexts), each.tokens)
    np.testing.assert_array_equal(decoder.finish(), seeds)


def test_words_that_are_left_over_or_missing_are_an_error() -> None:
    each = draw(2, 500)
    state, words = rans.encode(TABLES, (each,), 8, np.zeros(8, np.int64))
    with pytest.raises(CodecError, match="words"):
        rans.Decoder(TABLES, state.copy(), words[:-1]).take(each.contexts)
    longer = rans.Decoder(TABLES, state.copy(), np.append(words, np.uint16(1)))
    longer.take(each.contexts)
    with pytest.raises(CodecError, match="words"):
        longer.finish()


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2**21 - 1), st.integers(0, 21)), max_size=60))
def test_numbers_of_any_width_come_back_from_bits(numbers: list[tuple[int, int]]) -> None:
    values = np.array([value & (1 << width) - 1 for value, width in numbers], np.int64)
    widths = np.array([width for _, width in numbers], np.int64)
    np.testing.assert_array_equal(gather(spread(values, widths), widths), values)


@settings(max_examples=50)
@given(st.integers(1, 16), st.lists(st.integers(0, 2**16 - 1), max_size=60))
def test_numbers_of_one_width_are_the_bits_that_they_are_among_others(width: int, numbers: list[int]) -> None:
    values = np.array(numbers, np.int64) & (1 << width) - 1
    bits = spread_even(values, width)
    np.testing.assert_array_equal(bits, spread(values, np.full(len(values), width)))
    np.testing.assert_array_equal(gather_even(bits, width), values)


def test_the_widest_numbers_survive_at_every_place_within_a_byte() -> None:
    widths = np.array([31, 1, 31, 2, 31, 3, 31, 0, 31])
    values = (1 << widths) - 1
    np.testing.assert_array_equal(gather(spread(values, widths), widths), values)
