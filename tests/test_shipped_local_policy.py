"""The local policy that is shipped for the trained policy: it fits its bundle, and mostly says what the server says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.end_to_end.trained_policy import FRAMES, INSTRUCTION
from benchmarks.frames import read_frames
from splitvla_cloud.backbone import Backbone
from splitvla_cloud.prompt import Prompt
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.local.agreement import Agreement
from splitvla_edge.local.graph import LocalPolicy
from splitvla_edge.robots.metaworld.tasks import TASKS
from splitvla_shared.actions import detokenize, parse_statistics
from splitvla_shared.bundle import open_bundle
from splitvla_shared.preprocess.images import to_square
from splitvla_shared.spec import Resize

SHIPPED = Path(__file__).parent.parent / "benchmarks" / "world" / "local_policy.onnx"
WITHIN_BINS, EVERY = 25, 2


def test_the_shipped_local_policy_knows_every_task_and_agrees_on_most_frames_of_a_recorded_episode(
    trained_bundles: Path,
) -> None:
    edge = open_bundle(trained_bundles / "edge", "edge")
    cloud = open_bundle(trained_bundles / "cloud", "cloud")
    spec = edge.spec
    stored = json.loads((edge.path / "statistics.json").read_text(encoding="utf-8"))
    (statistics,) = parse_statistics(stored).values()
    local = LocalPolicy(SHIPPED, spec, statistics)
    indices = {local.index_of(task.instruction) for task in TASKS.values()}
    assert indices == set(range(len(TASKS)))

    encoder, backbone = OnnxEncoder(edge, 1), Backbone.load(cloud, "fp32", "cpu")
    prompt = Prompt.load(cloud.path, spec).ids(INSTRUCTION)
    agreement = Agreement(spec.action_bins, WITHIN_BINS, statistics.still)
    index = local.index_of(INSTRUCTION)
    assert index is not None
    for frame in read_frames(FRAMES)[::EVERY]:
        patches = encoder.embed(to_square(frame, spec.image_size, Resize.NAIVE))
        tokens = backbone.full_answer(prompt, patches, statistics.dims)
        said = detokenize(tokens, vocab_size=spec.action_vocab_size, bins=spec.action_bins)
        agreement.note(local.act(patches, frame, index), np.asarray(said.normalized)[np.newaxis])
    share, answers = agreement.now
    assert answers >= 8
    assert share >= 0.5
