"""The benchmark's trained policy: its codec is weighed by what the answers react to, as the bundles then say."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from benchmarks.end_to_end.trained_policy import weigh_by_answers
from splitvla_shared.bundle import open_bundle
from splitvla_shared.codec.sensitivity import load_sensitivity


def test_the_answers_weights_fit_the_checkpoint_and_take_the_first_layer_s_place(
    trained_bundles: Path, tmp_path: Path
) -> None:
    bundles = Path(shutil.copytree(trained_bundles, tmp_path / "bundles"))
    before = open_bundle(bundles / "edge", "edge")
    first_layer = load_sensitivity(before)
    weigh_by_answers(bundles)
    after = open_bundle(bundles / "edge", "edge")
    answers = load_sensitivity(after)
    assert first_layer is not None
    assert answers is not None
    assert first_layer.patches is None
    assert answers.patches is not None
    assert not np.array_equal(first_layer.directions, answers.directions)
    assert after.spec.fingerprint == before.spec.fingerprint
