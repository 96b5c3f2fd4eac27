"""`act`: one image file, one action, as text for people and as one JSON object for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image as PilImage

from splitvla_edge.act import ActRequest, ActResult, act_once, render_json, render_text
from splitvla_edge.policy_options import PolicyOptions
from splitvla_shared.bundle import open_bundle
from splitvla_shared.errors import BundleError, ConfigError, ObservationError, Unreachable
from splitvla_shared.nouns import ActionChunk, StageTimes
from splitvla_shared.wire import inference_pb2 as pb
from tests.fake_server import FakeServicer, description, serving

OPTIONS = PolicyOptions(unnorm_key="widowx_tiny", threads=1)
RESULT = ActResult(
    ActionChunk(
        first_step=0,
        actions=np.array([[0.1 + 0.2, -1 / 3, 1e-17]]),
        source="cloud",
        tokens=(31800, 2, 31999),
        clipped=(1,),
        stages=StageTimes(encode_ms=12.5, total_ms=40.25),
        wire_bytes=282_624,
    ),
    "int4_zstd",
    "bridge_orig",
)


def test_json_is_one_object_with_exactly_these_keys() -> None:
    text = render_json(RESULT)
    assert "\n" not in text
    answer = json.loads(text)
    assert list(answer) == ["tokens", "action", "clipped", "timings_ms", "wire_bytes", "scheme", "unnorm_key"]
    assert answer["tokens"] == [31800, 2, 31999]
    assert answer["clipped"] == [1]
    assert answer["timings_ms"]["total_ms"] == 40.25
    assert (answer["wire_bytes"], answer["scheme"], answer["unnorm_key"]) == (282_624, "int4_zstd", "bridge_orig")


def test_json_keeps_the_actions_bits() -> None:
    assert json.loads(render_json(RESULT))["action"] == RESULT.chunk.actions[0].tolist()


def test_a_longer_chunk_is_a_list_of_actions() -> None:
    chunk = ActionChunk(0, np.array([[1.0, 2.0], [3.0, 4.0]]), "cloud")
    assert json.loads(render_json(ActResult(chunk, "f32", "k")))["action"] == [[1.0, 2.0], [3.0, 4.0]]
    assert "4.000000" in render_text(ActResult(chunk, "f32", "k"))


def test_text_shows_tokens_actions_clipping_times_and_bytes() -> None:
    lines = render_text(RESULT).splitlines()
    assert lines[0] == "action for bridge_orig"
    assert lines[2].split() == ["0", "31800", "0.300000"]
    assert lines[3].split()[:3] == ["1", "2", "-0.333333"]
    assert [index for index, line in enumerate(lines) if "clipped" in line] == [3]
    assert any(line.split() == ["encode", "12.5", "ms"] for line in lines)
    assert lines[-1] == "sent 282,624 B as int4_zstd"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "frame.png"
    PilImage.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)).save(path)
    return path


@pytest.fixture
def server(tiny_bundles: Path) -> Iterator[tuple[FakeServicer, str]]:
    servicer = FakeServicer(described=description(open_bundle(tiny_bundles / "edge", "edge").spec))
    with serving(servicer) as address:
        yield servicer, address


@pytest.mark.parametrize(
    ("name", "scheme"), [(None, pb.BF16), ("f32", pb.F32), ("INT8", pb.INT8), ("Int4-Zstd", pb.INT4_ZSTD)]
)
def test_act_sends_one_image_in_the_scheme_that_is_named(
    tiny_bundles: Path, server: tuple[FakeServicer, str], image: Path, name: str | None, scheme: int
) -> None:
    servicer, address = server
    options = OPTIONS if name is None else PolicyOptions(**OPTIONS, scheme=name)
    request = ActRequest(tiny_bundles / "edge", address, image, "lift the pot", options)
    result = act_once(request)
    assert [sent.cameras[0].tensor.scheme for sent in servicer.requests] == [scheme]
    assert servicer.requests[0].instruction == "lift the pot"
    assert (result.rung, result.unnorm_key) == (pb.Scheme.Name(scheme).lower(), "widowx_tiny")
    assert json.loads(render_json(result))["tokens"] == list(range(31900, 31907))


def _request(frame: Path, **changes: Any) -> ActRequest:
    values: dict[str, Any] = {"bundle": Path("no"), "server": "h:1", "image": frame, "instruction": "go"}
    return ActRequest(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"deadline_s": 0.0}, ConfigError, "deadline_s is 0"),
        ({"connect_timeout_s": float("nan")}, ConfigError, "connect_timeout_s is nan"),
        ({"instruction": ""}, ObservationError, "empty"),
        ({"image": Path("nowhere.png")}, ObservationError, r"nowhere\.png: No such file"),
        ({"server": "h"}, ConfigError, "HOST:PORT"),
        ({}, BundleError, "no is not a bundle"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_before_anything_is_loaded(
    image: Path, changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        act_once(_request(image, **changes))


def test_an_unknown_scheme_is_named_with_the_schemes_and_rungs_that_there_are(tiny_bundles: Path, image: Path) -> None:
    with pytest.raises(ConfigError, match=r"'jpeg'.*f32.*rungs, bf16, int8, int4 \(its codec is not calibrated"):
        act_once(_request(image, bundle=tiny_bundles / "edge", options=PolicyOptions(**OPTIONS, scheme="jpeg")))


def test_no_server_is_unreachable_with_the_time_waited(tiny_bundles: Path, image: Path) -> None:
    request = _request(
        image,
        bundle=tiny_bundles / "edge",
        server="127.0.0.1:1",
        connect_timeout_s=0.2,
        options=OPTIONS,
    )
    with pytest.raises(Unreachable, match=r"no server at 127\.0\.0\.1:1 after 0\.2 s"):
        act_once(request)


@pytest.mark.parametrize(
    ("option", "reason"),
    [("image_pipeline", "hf, eval, eval-crop"), ("camera_transform", "rotate180"), ("action_transform", "simpler")],
)
def test_a_mistyped_convention_is_said_without_loading_the_encoder(
    tiny_bundles: Path, image: Path, monkeypatch: pytest.MonkeyPatch, option: str, reason: str
) -> None:
    monkeypatch.setattr("splitvla_edge.policy.OnnxEncoder", None)
    options = cast("PolicyOptions", OPTIONS | {option: "odd"})
    request = _request(image, bundle=tiny_bundles / "edge", options=options)
    with pytest.raises(ConfigError, match=f"'odd'.*{reason}"):
        act_once(request)


def test_the_robots_conventions_reach_the_action_that_is_printed(
    tiny_bundles: Path, server: tuple[FakeServicer, str], image: Path
) -> None:
    request = ActRequest(tiny_bundles / "edge", server[1], image, "lift the pot", OPTIONS)
    plain = json.loads(render_json(act_once(request)))["action"]
    conventions = PolicyOptions(
        **OPTIONS, image_pipeline="eval-crop", camera_transform="rotate180", action_transform="libero"
    )
    turned = dataclasses.replace(request, options=conventions)
    action = json.loads(render_json(act_once(turned)))["action"]
    assert action[:6] == plain[:6], "the fake server answers every frame alike"
    assert action[6] == -np.sign(2 * plain[6] - 1)
