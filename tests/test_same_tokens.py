"""The product's first promise: split, ONNX, gRPC and server give the unsplit reference's tokens and actions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from benchmarks.processes import ServerProcess, run_command
from splitvla_edge import EdgePolicy
from splitvla_shared.nouns import Observation, Scheme


@pytest.fixture(scope="module")
def reference_server(reference_bundles: Path) -> Iterator[str]:
    with ServerProcess(reference_bundles / "cloud") as server:
        yield server.wait_ready()


def test_all_golden_tokens_and_actions_come_back_through_the_wire(
    reference_checkpoint: Path, reference_bundles: Path, reference_server: str
) -> None:
    golden = np.load(reference_checkpoint / "golden.npz")
    tokens, actions = golden["fp32/tiny_bridge_orig/tokens"], golden["fp32/tiny_bridge_orig/actions"]
    with EdgePolicy.connect(
        reference_bundles / "edge", reference_server, unnorm_key="tiny_bridge_orig", scheme=Scheme.F32
    ) as policy:
        for i, name in enumerate(golden["image_names"]):
            for k, instruction in enumerate(golden["instructions"]):
                observation = Observation(i, (golden[f"image/{name}"],), str(instruction), time.monotonic())
                chunk = policy.act(observation, deadline_s=10.0)
                assert list(chunk.tokens) == tokens[i, k].tolist(), (name, instruction)
                np.testing.assert_allclose(chunk.actions[0], actions[i, k], rtol=0, atol=1e-9)


def test_act_prints_the_golden_tokens_as_json(
    reference_checkpoint: Path, reference_bundles: Path, reference_server: str, tmp_path: Path
) -> None:
    golden = np.load(reference_checkpoint / "golden.npz")
    image = tmp_path / "frame.png"
    PillowImage.fromarray(golden["image/scene_480x640_c"]).save(image)
    index = golden["image_names"].tolist().index("scene_480x640_c")
    options = ["--bundle", str(reference_bundles / "edge"), "--server", reference_server, "--image", str(image)]
    options += [
        "--instruction",
        str(golden["instructions"][0]),
        "--scheme",
        "f32",
        "--json",
        "--unnorm-key",
        "tiny_bridge_orig",
    ]
    result = run_command("splitvla_edge", ["act", *options])
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["tokens"] == golden["fp32/tiny_bridge_orig/tokens"][index, 0].tolist()
    np.testing.assert_allclose(answer["action"], golden["fp32/tiny_bridge_orig/actions"][index, 0], rtol=0, atol=1e-9)
    assert answer["timings_ms"]["total_ms"] > 0
