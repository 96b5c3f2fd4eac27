"""A calibrated model as a user has it: two bundles, a server of one of them, a robot of the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.frames import INSTRUCTION, read_frames
from benchmarks.processes import ServerProcess
from splitvla_cloud.backbone import Backbone
from splitvla_cloud.prompt import Prompt
from splitvla_edge import EdgePolicy
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.model import read_ladder
from splitvla_shared.bundle import open_bundle
from splitvla_shared.codec.transform import Binding, TransformCodec
from splitvla_shared.errors import SpecMismatch
from splitvla_shared.nouns import ActionChunk, Observation, Scheme
from splitvla_shared.preprocess.images import to_square

KEY = "widowx_tiny"


@pytest.fixture(scope="module")
def server(calibrated_bundles: Path) -> Iterator[str]:
    with ServerProcess(calibrated_bundles / "cloud") as running:
        yield running.wait_ready()


def act(policy: EdgePolicy, index: int) -> ActionChunk:
    observation = Observation(index, (read_frames()[index],), INSTRUCTION, time.monotonic())
    return policy.act(observation, deadline_s=20.0)


def test_the_exact_rung_is_lossless_and_no_larger_than_bf16(calibrated_bundles: Path, server: str) -> None:
    with EdgePolicy.connect(calibrated_bundles / "edge", server, unnorm_key=KEY, threads=1) as policy:
        assert policy.rungs[0].name == "exact"
        assert act(policy, 0).wire_bytes < 66_000


def test_a_robot_with_another_calibration_is_refused_by_name(tiny_bundles: Path, server: str) -> None:
    with pytest.raises(SpecMismatch, match=r"codec_sha256: .* adopt-codec.*restart the server"):
        EdgePolicy.connect(tiny_bundles / "edge", server, unnorm_key=KEY, threads=1)


def test_a_codec_rung_gives_the_tokens_of_the_embedding_that_it_stands_for(
    calibrated_bundles: Path, server: str
) -> None:
    """Backbone, prompt and codec of the cloud half, in this process, on what the robot's half would send."""
    with EdgePolicy.connect(calibrated_bundles / "edge", server, unnorm_key=KEY, threads=1) as policy:
        assert policy.server is not None
        assert Scheme.KLT in policy.server.schemes
    edge, cloud = open_bundle(calibrated_bundles / "edge", "edge"), open_bundle(calibrated_bundles / "cloud", "cloud")
    tables, ladder = read_ladder(edge, "db36")
    rung = ladder[0].codec_rung
    assert tables is not None
    assert rung is not None
    encoder, codec = OnnxEncoder(edge, 1, tables=tables), TransformCodec(tables)
    square = to_square(read_frames()[0], 224, edge.spec.resize)
    sent = codec.encode(encoder.coefficients(square), rung, Binding(1, 1))
    patches = codec.reconstruct(sent.reference)
    ids = Prompt.load(cloud.path, cloud.spec).ids(INSTRUCTION)
    with EdgePolicy.connect(calibrated_bundles / "edge", server, unnorm_key=KEY, threads=1, scheme="db36") as policy:
        assert [rung.name for rung in policy.rungs] == [rung.name for rung in ladder]
        first, second = act(policy, 0), act(policy, 1)
    wanted = Backbone.load(cloud, "fp32", "cpu").full_answer(ids, patches, len(first.tokens))
    np.testing.assert_array_equal(first.tokens, wanted)
    assert second.wire_bytes < first.wire_bytes < 66_000 / 2
