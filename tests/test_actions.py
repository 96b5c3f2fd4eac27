"""Action tokens to numbers: exactly the reference's, with every clipped id marked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitvla_shared.actions import detokenize, parse_statistics, select_statistics
from splitvla_shared.errors import BundleError, ObservationError

VOCAB, BINS = 32000, 256
STATISTICS = {"action": {"q01": [-1.0, 0.0, 0.0], "q99": [3.0, 0.5, 1.0], "mask": [True, True, False]}}


def test_detokenizing_gives_the_reference_s_table(reference_checkpoint: Path) -> None:
    with np.load(reference_checkpoint / "golden.npz", allow_pickle=False) as golden:
        ids, expected = golden["decode/token_ids"], golden["decode/normalized"]
    got = detokenize(ids.tolist(), vocab_size=VOCAB, bins=BINS)
    np.testing.assert_array_equal(got.normalized, expected)
    outside = [i for i, token in enumerate(ids) if not VOCAB - BINS <= token < VOCAB]
    assert outside
    assert list(got.clipped) == outside


def test_unnormalizing_gives_the_reference_s_actions(reference_checkpoint: Path) -> None:
    config = json.loads((reference_checkpoint / "config.json").read_text(encoding="utf-8"))
    with np.load(reference_checkpoint / "golden.npz", allow_pickle=False) as golden:
        key = str(golden["unnorm_keys"][0])
        tokens, normalized, actions = (golden[f"fp32/{key}/{name}"] for name in ("tokens", "normalized", "actions"))
    statistics = select_statistics(parse_statistics(config["norm_stats"]), key)
    assert statistics.dims == tokens.shape[-1]
    got = detokenize(tokens.reshape(-1).tolist(), vocab_size=VOCAB, bins=BINS).normalized.reshape(tokens.shape)
    np.testing.assert_array_equal(got, normalized)
    np.testing.assert_array_equal(statistics.unnormalize(got), actions)


@pytest.mark.parametrize(
    ("token", "clipped", "bin_center"),
    [
        (VOCAB - 1, False, 0),
        (VOCAB - BINS + 1, False, BINS - 2),
        (VOCAB - BINS, False, BINS - 2),
        (VOCAB - BINS - 1, True, BINS - 2),
        (VOCAB, True, 0),
        (VOCAB + 63, True, 0),
        (2, True, BINS - 2),
        (0, True, BINS - 2),
        (2**32 - 1, True, 0),
    ],
)
def test_an_id_outside_the_bins_is_clipped_and_marked(token: int, clipped: bool, bin_center: int) -> None:
    edges = np.linspace(-1, 1, BINS)
    got = detokenize([VOCAB - 128, token], vocab_size=VOCAB, bins=BINS)
    assert got.clipped == ((1,) if clipped else ())
    assert got.normalized[1] == (edges[bin_center] + edges[bin_center + 1]) / 2


def test_no_ids_give_no_actions() -> None:
    got = detokenize([], vocab_size=VOCAB, bins=BINS)
    assert (got.normalized.size, got.clipped) == (0, ())


def test_a_masked_dimension_stays_normalised() -> None:
    statistics = parse_statistics({"arm": STATISTICS})["arm"]
    np.testing.assert_array_equal(statistics.unnormalize(np.array([0.0, 1.0, 0.25])), [1.0, 0.5, 0.25])
    chunk = statistics.unnormalize(np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    np.testing.assert_array_equal(chunk, [[-1.0, 0.0, -1.0], [3.0, 0.5, 1.0]])


def test_without_a_mask_every_dimension_is_scaled() -> None:
    entry = {"action": {name: STATISTICS["action"][name] for name in ("q01", "q99")}}
    assert parse_statistics({"arm": entry})["arm"].mask.tolist() == [True, True, True]


@pytest.mark.parametrize("statistics", [{}, [], None, "x"])
def test_a_checkpoint_without_statistics_is_refused(statistics: Any) -> None:
    with pytest.raises(BundleError, match="no norm_stats"):
        parse_statistics(statistics)


@pytest.mark.parametrize(
    ("action", "match"),
    [
        (None, "no 'action' entry"),
        ([1, 2], "no 'action' entry"),
        ({"q99": [1]}, "q01, q99 or mask is missing"),
        ({"q01": [1]}, "q01, q99 or mask is missing"),
        ({"q01": 0.0, "q99": 1.0}, "not a list"),
        ({"q01": ["a"], "q99": [1]}, "not a list"),
        ({"q01": [], "q99": []}, "must agree"),
        ({"q01": [0], "q99": [1, 2]}, "must agree"),
        ({"q01": [0], "q99": [1], "mask": [True, True]}, "must agree"),
        ({"q01": [[0]], "q99": [[1]]}, "must agree"),
        ({"q01": [float("nan")], "q99": [1]}, "not finite"),
        ({"q01": [0], "q99": [float("inf")]}, "not finite"),
    ],
)
def test_malformed_statistics_are_refused_with_their_key(action: Any, match: str) -> None:
    with pytest.raises(BundleError, match=f"(?s)'arm'.*{match}"):
        parse_statistics({"arm": {"action": action}})


def test_the_only_statistics_need_no_key() -> None:
    assert select_statistics(parse_statistics({"arm": STATISTICS}), None).key == "arm"


def test_several_statistics_need_a_key_and_are_listed() -> None:
    statistics = parse_statistics({"b": STATISTICS, "a": STATISTICS})
    assert select_statistics(statistics, "b").key == "b"
    with pytest.raises(ObservationError, match="--unnorm-key: a, b"):
        select_statistics(statistics, None)
    with pytest.raises(ObservationError, match="unknown unnorm key 'c'; this model has: a, b"):
        select_statistics(statistics, "c")
