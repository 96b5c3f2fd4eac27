"""Calibration: basis, steps and tables learned from embeddings, and what they keep on frames held out."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from splitvla_edge.calibrate.basis import covariance_of, learn_basis, mean_of, patch_weights, step_for
from splitvla_edge.calibrate.learn import hold_out, learn, sealed
from splitvla_edge.calibrate.measure import measure
from splitvla_shared.codec.sensitivity import Sensitivity
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.codec.transform import Binding, TransformCodec
from splitvla_shared.errors import BundleError, ObservationError
from splitvla_shared.nouns import FloatArray

PATCHES, DIM = 32, 16


def clips(count: int, length: int, outlier: float = 1.0, seed: int = 0) -> list[list[FloatArray]]:
    """Rank-deficient embeddings that move slowly, channel 3 `outlier` times the rest."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(DIM, DIM)) * (1 / np.arange(1, DIM + 1))[:, None]
    mix[:, 3] *= outlier
    mean = np.random.default_rng(98).normal(size=(PATCHES, 1)) * 3
    found = []
    for _ in range(count):
        state = rng.laplace(size=(PATCHES, DIM))
        clip = []
        for _ in range(length):
            state = np.where(rng.random((PATCHES, 1)) < 0.2, rng.laplace(size=(PATCHES, DIM)), state)
            clip.append(np.asarray(state @ mix + mean, np.float32))
        found.append(clip)
    return found


def test_each_rung_keeps_about_what_it_is_named_after_and_costs_less_than_the_one_above() -> None:
    tables, _ = sealed(learn(clips(8, 6), ladder_db=(30, 20, 10)))
    costs = measure(TransformCodec(tables), clips(2, 6, seed=1))
    assert [cost.name for cost in costs] == ["db30", "db20", "db10"]
    for cost, wanted in zip(costs, (30, 20, 10), strict=True):
        assert abs(cost.sqnr_db - wanted) < 2
        assert cost.predicted_bytes is not None
        assert cost.predicted_bytes < cost.key_bytes
    assert all(above.key_bytes > below.key_bytes for above, below in itertools.pairwise(costs))


def test_a_channel_a_thousand_times_the_rest_costs_neither_the_rest_nor_itself() -> None:
    """The noise is a share of all variance: the outlier must be kept to the step, not clipped at any range."""
    tables, _ = sealed(learn(clips(8, 6, outlier=1000.0), ladder_db=(70,)))
    codec = TransformCodec(tables)
    held = clips(1, 4, outlier=1000.0, seed=1)
    assert measure(codec, held)[0].sqnr_db > 67


def test_a_sensitivity_moves_the_error_to_where_it_matters_less() -> None:
    weights = np.eye(DIM, dtype=np.float32)
    weights[:8] *= 100
    plain, _ = sealed(learn(clips(8, 6), ladder_db=(15,)))
    weighted, _ = sealed(learn(clips(8, 6), ladder_db=(15,), sensitivity=Sensitivity(weights)))
    assert _error(weighted, slice(0, 8)) / _error(weighted, slice(8, DIM)) < 0.3 * (
        _error(plain, slice(0, 8)) / _error(plain, slice(8, DIM))
    )


def _error(tables: CodecTables, channels: slice) -> float:
    codec = TransformCodec(tables)
    total = 0.0
    for frame in clips(1, 4, seed=2)[0]:
        values = np.asarray((frame - tables.mean.mean(axis=0)) @ tables.analysis)
        found = codec.encode(values, 0, Binding(0, 1)).reference
        total += float(np.square(codec.reconstruct(found) - frame)[:, channels].sum())
    return total


def test_patches_that_matter_more_are_sent_finer_and_the_weights_travel_in_the_tables() -> None:
    matters = np.ones(PATCHES, np.float32)
    matters[:4] = 50
    even = Sensitivity(np.eye(DIM, dtype=np.float32))
    tables, data = sealed(learn(clips(8, 6), ladder_db=(20,), sensitivity=Sensitivity(even.directions, matters)))
    alike, plain_data = sealed(learn(clips(8, 6), ladder_db=(20,), sensitivity=even))
    weights = CodecTables.from_bytes(data).patch_weights
    assert weights is not None
    np.testing.assert_array_equal(weights, patch_weights(Sensitivity(even.directions, matters), PATCHES))
    assert CodecTables.from_bytes(plain_data).patch_weights is None
    errors, usual = _patch_errors(tables), _patch_errors(alike)
    assert errors[4:].mean() > 10 * errors[:4].mean()
    assert usual[:4].mean() == pytest.approx(usual[4:].mean(), rel=0.3)


def _patch_errors(tables: CodecTables) -> FloatArray:
    """Mean squared error of each patch."""
    codec = TransformCodec(tables)
    frames = clips(1, 4, seed=2)[0]
    coded = [codec.encode(tables.coefficients(frame), 0, Binding(0, 1)).reference for frame in frames]
    errors = [np.square(codec.reconstruct(each) - frame) for each, frame in zip(coded, frames, strict=True)]
    return np.asarray(np.mean(errors, axis=(0, 2)))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, 1e9])
def test_weights_that_no_calibration_gives_are_refused(value: float) -> None:
    tables = learn(clips(8, 2), ladder_db=(20,))
    with pytest.raises(BundleError, match="weights"):
        dataclasses.replace(tables, patch_weights=np.full(PATCHES, value, np.float32))


def test_a_sensitivity_of_another_model_is_refused() -> None:
    with pytest.raises(BundleError, match="16 wide"):
        learn(clips(4, 4), sensitivity=Sensitivity(np.eye(8, dtype=np.float32)))
    with pytest.raises(BundleError, match="of 5 patches, this model has 32"):
        learn(clips(4, 4), sensitivity=Sensitivity(np.eye(DIM, dtype=np.float32), np.ones(5, np.float32)))


def test_too_few_frames_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(ObservationError, match="at least 8"):
        learn(clips(1, 3))


def test_the_step_of_reverse_water_filling_leaves_the_wanted_error() -> None:
    variances = np.array([100.0, 10.0, 1.0, 0.1])
    for wanted_db in (5.0, 15.0, 30.0):
        level = step_for(variances, wanted_db) ** 2 / 12
        assert np.minimum(variances, level).sum() == pytest.approx(variances.sum() * 10 ** (-wanted_db / 10))


def test_the_basis_is_orthonormal_and_diagonalises_the_covariance() -> None:
    frames = [frame for clip in clips(4, 4) for frame in clip]
    mean = mean_of(frames)
    residual = np.concatenate([frame - mean for frame in frames]).astype(np.float64)
    covariance = covariance_of((frame - mean for frame in frames), DIM)
    np.testing.assert_allclose(covariance, residual.T @ residual / len(residual), atol=1e-5)
    basis = learn_basis(covariance, DIM)
    np.testing.assert_allclose(basis.analysis.T @ basis.analysis, np.eye(DIM), atol=1e-5)
    diagonal = basis.analysis.T @ covariance @ basis.analysis
    np.testing.assert_allclose(diagonal, np.diag(basis.variances), atol=1e-4)


def test_few_clips_are_cut_in_time_and_many_are_held_out_whole() -> None:
    few_learn, few_held = hold_out(clips(1, 8))
    assert ([len(clip) for clip in few_learn], [len(clip) for clip in few_held]) == ([6], [2])
    many_learn, many_held = hold_out(clips(8, 3))
    assert (len(many_learn), len(many_held)) == (6, 2)
