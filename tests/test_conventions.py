"""EdgePolicy's conventions: which pipeline a frame goes through and which transform an action, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from splitvla_edge import EdgePolicy
from splitvla_edge.link.calls import Reply
from splitvla_edge.model import EdgeModel
from splitvla_shared.actions import parse_statistics
from splitvla_shared.errors import ConfigError
from splitvla_shared.image_pipelines import ImagePipeline
from splitvla_shared.nouns import ActionChunk, Observation
from splitvla_shared.preprocess.image_pipelines import build_pipeline
from splitvla_shared.preprocess.images import GRAY
from tests.edge_fakes import MIDDLE, STATISTICS, Clock, FakeEncoder, FakeLink
from tests.fake_server import SPEC

FRAME = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
OPEN = 31744


def _act(encoder: FakeEncoder, bundled: ImagePipeline = ImagePipeline.HF, **options: Any) -> ActionChunk:
    """One action for FRAME, of which all dimensions are in the middle and the gripper is open."""
    link = FakeLink(encoder.clock)
    link.outcome = Reply(1, tokens=(MIDDLE,) * 6 + (OPEN,))
    model = EdgeModel(SPEC, parse_statistics(STATISTICS)["arm"], image_pipeline=bundled)
    policy = EdgePolicy(model, encoder, link, clock=encoder.clock, **options)
    policy.handshake()
    return policy.act(Observation(0, (FRAME,), "lift the pot", 99.0))


@pytest.mark.parametrize(
    ("options", "pipeline", "turn"),
    [
        ({}, ImagePipeline.EVAL_CROP, "none"),
        ({"image_pipeline": "hf"}, ImagePipeline.HF, "none"),
        ({"image_pipeline": "eval", "camera_transform": "rotate180"}, ImagePipeline.EVAL, "rotate180"),
    ],
)
def test_frames_go_through_the_bundles_pipeline_unless_another_is_named(
    options: dict[str, str], pipeline: ImagePipeline, turn: str
) -> None:
    encoder = FakeEncoder(Clock())
    _act(encoder, ImagePipeline.EVAL_CROP, **options)
    np.testing.assert_array_equal(encoder.images[-1], build_pipeline(pipeline, turn, SPEC, GRAY)(FRAME))


@pytest.mark.parametrize(("name", "gripper"), [("none", 1 - 1 / 255), ("libero", -1.0), ("simpler", 1.0)])
def test_the_action_is_in_the_convention_that_is_named(name: str, gripper: float) -> None:
    chunk = _act(FakeEncoder(Clock()), action_transform=name)
    assert chunk.actions[0, 6] == pytest.approx(gripper, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"image_pipeline": "jpeg"}, r"image pipeline 'jpeg'.*eval-crop"),
        ({"camera_transform": "flip"}, r"camera transform 'flip'.*rotate180"),
        ({"action_transform": "aloha"}, r"action transform 'aloha'.*libero"),
    ],
)
def test_an_unknown_convention_is_refused_before_any_frame(options: dict[str, Any], reason: str) -> None:
    encoder = FakeEncoder(Clock())
    with pytest.raises(ConfigError, match=reason):
        _act(encoder, **options)
    assert not encoder.images
