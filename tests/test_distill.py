"""Distilling: a head learns what a recording says, and its file is one that the robot takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.world.distill import agreement, export, load, train
from splitvla_edge.local.graph import LocalPolicy
from splitvla_shared.actions import ActionStatistics
from splitvla_shared.errors import ConfigError
from splitvla_shared.recording import Answers, write_answers
from tests.specs import make_spec

SPEC = make_spec(patches=6, embed_dim=16)
STATISTICS = ActionStatistics("x", np.full(3, -1.0), np.ones(3), np.full(3, True))


def write_recording(folder: Path, files: int = 10, fingerprint: str = SPEC.fingerprint) -> None:
    """The answer says where the bright patch is, with the sign of the instruction; the third number is noise."""
    draw = np.random.default_rng(0)
    for number in range(files):
        places, instruction = draw.integers(0, 6, 40), draw.integers(0, 2, 40)
        patches = draw.normal(0.0, 0.1, (40, 6, 16))
        patches[np.arange(40), places] += 2.0 * np.sin(np.arange(16))
        said = (places / 5.0 - 0.5) * np.where(instruction == 1, -1.0, 1.0)
        answers = np.stack([said, -said, draw.uniform(-1.0, 1.0, 40)], axis=1)[:, np.newaxis]
        write_answers(
            folder / f"answers-0-{number}.npz",
            Answers(
                fingerprint,
                np.array([False, False, True]),
                patches.astype(np.float16),
                answers.astype(np.float32),
                np.zeros((40, 0), np.int32),
                ("left", "right"),
                instruction,
            ),
        )


def test_what_it_learns_agrees_on_held_out_files_and_survives_the_export(tmp_path: Path) -> None:
    write_recording(tmp_path)
    data = load(tmp_path)
    assert (len(data.train), len(data.held_out)) == (360, 40)
    head = train(data, 300, seed=0)
    found = agreement(head, data.held_out, data, within=25)
    assert sum(agreed for agreed, _ in found.values()) >= 28, "noise where nothing moves does not count"
    export(head, data, tmp_path / "local.onnx")
    policy = LocalPolicy(tmp_path / "local.onnx", SPEC, STATISTICS)
    assert (policy.index_of("right"), policy.declared.takes_instruction) == (1, True)
    frames = data.held_out
    for row in range(5):
        patches = frames.patches[row].astype(np.float32)
        said = policy.act(patches, np.zeros((4, 4, 3), np.uint8), int(frames.instruction[row]))
        assert np.abs(said[0, :2] - frames.answers[row, :2]).max() < 0.3


def test_answers_of_several_models_or_too_few_are_refused(tmp_path: Path) -> None:
    write_recording(tmp_path, files=1)
    with pytest.raises(ConfigError, match="holds one file"):
        load(tmp_path)
    write_recording(tmp_path, files=3)
    write_recording(tmp_path, files=1, fingerprint=replace(SPEC, fingerprint="0" * 64).fingerprint)
    with pytest.raises(ConfigError, match="several models"):
        load(tmp_path)
