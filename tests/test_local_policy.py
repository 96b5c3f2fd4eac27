"""The local policy: its file is checked in one line, it is compared with the server, and it acts when it is wanted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitvla_edge import EdgePolicy
from splitvla_edge.answers import Answer
from splitvla_edge.embedder import Embedded
from splitvla_edge.local.agreement import Agreement, bin_of
from splitvla_edge.local.graph import LocalPolicy
from splitvla_edge.local.runner import LocalRunner, open_runner
from splitvla_edge.local.settings import LocalSettings
from splitvla_edge.model import EdgeModel
from splitvla_edge.robots.base import Frame
from splitvla_shared.actions import parse_statistics
from splitvla_shared.errors import BundleError, ConfigError, RobotError
from splitvla_shared.nouns import ActionArray, FloatArray, Image, Observation
from tests.edge_fakes import STATISTICS, Clock, FakeEncoder, FakeLink
from tests.fake_server import SPEC
from tests.local_graphs import INSTRUCTIONS, metadata, write_local_policy

ARM = parse_statistics(STATISTICS)["arm"]
PATCHES = np.zeros((SPEC.patches, SPEC.embed_dim), np.float32)
PICTURE = np.zeros((4, 4, 3), np.uint8)


def opened(tmp_path: Path, **changes: Any) -> LocalPolicy:
    return LocalPolicy(write_local_policy(tmp_path / "local.onnx", SPEC, **changes), SPEC, ARM)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_instruction_chooses_the_answer_and_the_patches_move_it(tmp_path: Path) -> None:
    policy = opened(tmp_path)
    assert [policy.index_of(text) for text in (*INSTRUCTIONS, "dance")] == [0, 1, None]
    assert policy.act(PATCHES, PICTURE, 1) == pytest.approx(np.full((1, 7), -0.5))
    assert policy.act(PATCHES + 0.25, PICTURE, 0) == pytest.approx(np.full((1, 7), 0.75))


def test_a_policy_fits_the_bundle_after_it_is_calibrated_too(tmp_path: Path) -> None:
    file = write_local_policy(tmp_path / "local.onnx", SPEC)
    calibrated = replace(SPEC, codec_sha256="c" * 64).sealed()
    assert calibrated.fingerprint != SPEC.fingerprint
    assert LocalPolicy(file, calibrated, ARM).index_of(INSTRUCTIONS[0]) == 0


def test_an_image_policy_gets_the_frame_at_its_own_size(tmp_path: Path) -> None:
    policy = opened(tmp_path, kind="image", said=metadata(SPEC, fingerprint=None))
    frame = np.full((60, 90, 3), 4, np.uint8)
    assert policy.act(PATCHES, frame, 0) == pytest.approx(np.full((1, 7), 4.5))


def test_actions_in_units_are_normalised_by_the_models_statistics(tmp_path: Path) -> None:
    policy = opened(tmp_path, answers=((4.0,) * 6 + (1.0,), (-2.0,) * 6 + (0.0,)), said=metadata(SPEC, actions="units"))
    assert policy.act(PATCHES, PICTURE, 0)[0] == pytest.approx((1.0,) * 7)
    assert policy.act(PATCHES, PICTURE, 1)[0] == pytest.approx((-1.0,) * 6 + (0.0,))


def test_a_policy_of_one_instruction_needs_no_input_for_it(tmp_path: Path) -> None:
    policy = opened(tmp_path, instruction=None, said=metadata(SPEC, instructions='["pick"]'))
    assert policy.act(PATCHES, PICTURE, 0) == pytest.approx(np.full((1, 7), 0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"said": metadata(SPEC, local=None)}, "splitvla.local is ''; expected 1"),
        ({"said": metadata(SPEC, actions="joints")}, "splitvla.actions is 'joints'; expected normalized or units"),
        ({"said": metadata(SPEC, instructions="pick")}, "expected a JSON list of sentences"),
        ({"said": metadata(SPEC, instructions="[]")}, "expected a JSON list of sentences"),
        ({"said": metadata(SPEC, instructions='["pick", 3]')}, "expected a JSON list of sentences"),
        ({"said": metadata(SPEC, fingerprint="0" * 64)}, "distil it again"),
        ({"said": metadata(SPEC, fingerprint=None)}, "'none'"),
        ({"kind": "pixels"}, "its inputs are .'instruction', 'pixels'.; expected patches or image"),
        ({"kind": "patches", "shape": [1, 5, 64]}, r"patches is tensor\(float\) \[1, 5, 64\]; expected"),
        ({"kind": "image", "shape": [1, "height", 8, 3]}, "expected .1, height, width, 3."),
        ({"instruction": None}, "lists 2 instructions and has no input"),
        ({"output": "action"}, "output actions is absent"),
        ({"answers": ((0.5,) * 6, (0.5,) * 6)}, r"expected tensor\(float\) \[1, 1, 7\]"),
        ({"answers": ((math.nan,) * 7, (0.5,) * 7)}, "not finite"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        opened(tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "local.onnx") in str(caught.value)


def test_a_file_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    for name in ("noise.onnx", "absent.onnx"):
        with pytest.raises(ConfigError, match=name):
            LocalPolicy(tmp_path / name, SPEC, ARM)


# --- its licence ------------------------------------------------------------------------------------------------------


def test_an_answer_agrees_when_every_dimension_is_within_so_many_bins() -> None:
    agreement = Agreement(bins=256, within=2, still=np.array([False, False, False]))
    server = np.zeros((1, 3))
    width = 2.0 / 255
    for local, expected in (
        (server, (1.0, 1)),
        (server + 2 * width, (1.0, 2)),
        (server + np.array([3 * width, 0, 0]), (2 / 3, 3)),
        (server + np.array([0, 0, -0.9]), (0.5, 4)),
    ):
        agreement.note(local, server)
        assert agreement.now == pytest.approx(expected)


def test_a_dimension_without_a_range_is_passed_over() -> None:
    agreement = Agreement(bins=256, within=0, still=np.array([False, True]))
    agreement.note(np.array([[0.0, 1.0]]), np.array([[0.0, -1.0]]))
    assert agreement.now == (1.0, 1)
    assert parse_statistics({"x": {"action": {"q01": [0, 0], "q99": [0, 1], "mask": [1, 1]}}})["x"].still.tolist() == [
        True,
        False,
    ]


def test_only_the_last_hundred_answers_count() -> None:
    agreement = Agreement(bins=256, within=0, still=np.array([False]))
    for _ in range(50):
        agreement.note(np.ones((2, 1)), np.zeros((1, 1)))
    for _ in range(100):
        agreement.note(np.zeros((2, 1)), np.zeros((1, 1)))
    assert agreement.now == (1.0, 100)


def test_bins_are_those_of_the_tokens() -> None:
    assert bin_of(np.array([-1.0, -0.999, 0.999, 1.0, 7.0]), 256).tolist() == [0, 0, 254, 254, 254]


# --- at work ----------------------------------------------------------------------------------------------------------


class FakeGraph:
    """Says what `outcome` is, and keeps what it was asked."""

    def __init__(self) -> None:
        self.outcome: ActionArray | ConfigError = np.array([[0.5, 0.0]])
        self.asked: list[tuple[float, int]] = []

    def act(self, patches: FloatArray, image: Image, instruction: int) -> ActionArray:
        self.asked.append((float(patches.mean()), instruction))
        if isinstance(self.outcome, ConfigError):
            raise self.outcome
        return self.outcome


class Rig:
    def __init__(self) -> None:
        self.now = 7.0
        self.graph, self.agreement = FakeGraph(), Agreement(256, 25, np.array([False, False]))
        self.broken: BundleError | None = None
        self.runner = LocalRunner(
            self.graph, 1, self.agreement, self.embed, lambda normalized: 10 * normalized, clock=lambda: self.now
        )

    def embed(self, images: tuple[Image, ...]) -> Embedded:
        if self.broken:
            raise self.broken
        return Embedded(tuple(np.full((2, 3), image.mean(), np.float32) for image in images))

    def step(self, index: int) -> Any:
        return self.runner.step(lambda now: Frame(np.full((2, 2, 3), 9, np.uint8), now - 0.05, index))

    def answered(self, normalized: float) -> None:
        observation = Observation(0, (PICTURE,), "pick", 0.0)
        self.runner.compare(Answer(observation, (PATCHES,), np.full((1, 2), normalized), ()))


def test_a_new_frame_becomes_an_answer_in_the_robots_units_with_its_licence() -> None:
    rig = Rig()
    rig.answered(0.5)
    rig.graph.outcome = np.array([[0.5, 0.5], [0.0, 0.0]])
    rig.answered(0.5)
    chunk = rig.step(3)
    assert (chunk.captured_at, chunk.actions) == (6.95, ((5.0, 5.0), (0.0, 0.0)))
    assert (chunk.agreement, chunk.samples) == (0.5, 2)
    assert rig.graph.asked[-1] == (9.0, 1)
    assert rig.step(3) is None, "a frame is used once"


def test_numbers_rise_also_across_a_process_that_is_started_again() -> None:
    first, second = Rig(), Rig()
    second.now = first.now + 1.0
    numbers = [first.step(0).number, first.step(1).number, second.step(0).number]
    assert numbers == sorted(set(numbers))


def test_a_graph_that_fails_is_switched_off_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    rig = Rig()
    rig.graph.outcome = ConfigError("local policy x.onnx failed: out of memory")
    assert rig.step(0) is None
    rig.answered(0.5)
    rig.graph.outcome = np.array([[0.0, 0.0]])
    assert rig.step(1) is None
    assert capsys.readouterr().err.splitlines() == [
        "splitvla-edge: local policy x.onnx failed: out of memory; the local policy is switched off"
    ]
    assert rig.agreement.now == (0.0, 0)


def test_an_encoder_that_fails_switches_it_off_and_a_camera_that_is_away_does_not() -> None:
    rig = Rig()

    def away(now: float) -> Frame | None:
        raise RobotError("unplugged")

    assert rig.runner.step(away) is None
    assert rig.step(0) is not None
    rig.broken = BundleError("not finite")
    assert rig.step(1) is None
    rig.broken = None
    assert rig.step(2) is None


# --- in the policy ----------------------------------------------------------------------------------------------------


@pytest.fixture
def policy() -> EdgePolicy:
    clock = Clock()
    made = EdgePolicy(EdgeModel(SPEC, ARM), FakeEncoder(clock, 0.04), FakeLink(clock, 0.05), clock=clock)
    made.handshake()
    return made


def open_for(policy: EdgePolicy, path: Path | None, instruction: str, *, needed: bool = False) -> LocalRunner | None:
    return open_runner(LocalSettings(path), instruction, policy, needed=needed)


def test_every_answer_of_the_server_is_compared_on_the_same_frame(tmp_path: Path, policy: EdgePolicy) -> None:
    path = write_local_policy(tmp_path / "local.onnx", SPEC, ((0.0,) * 7, (0.9,) * 7))
    for index, (instruction, expected) in enumerate((("pick", 1.0), ("place", 0.0))):
        policy.on_answer.clear()
        runner = open_for(policy, path, instruction)
        assert runner is not None
        policy.act(Observation(index, (np.zeros((8, 8, 3), np.uint8),), instruction, 0.0))
        policy.tell_answer()
        chunk = runner.step(lambda now: Frame(np.zeros((8, 8, 3), np.uint8), now, 5))
        assert chunk is not None
        assert (chunk.agreement, chunk.samples) == (expected, 1)


def test_a_frame_that_both_look_at_is_encoded_once(tmp_path: Path, policy: EdgePolicy) -> None:
    runner = open_for(policy, write_local_policy(tmp_path / "local.onnx", SPEC), "pick")
    assert runner is not None
    frame = Frame(np.zeros((8, 8, 3), np.uint8), 0.0, 0)
    runner.step(lambda now: frame)
    chunk = policy.act(Observation(0, (frame.image,), "pick", 0.0))
    assert (chunk.stages.preprocess_ms, chunk.stages.encode_ms) == (0.0, 0.0)


def test_an_instruction_that_it_does_not_know_means_no_local_policy_and_is_said_once(
    tmp_path: Path, policy: EdgePolicy, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_local_policy(tmp_path / "local.onnx", SPEC)
    assert open_for(policy, path, "dance") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not know 'dance'; it knows: pick; place" in line
    with pytest.raises(ConfigError, match="dance"):
        open_for(policy, path, "dance", needed=True)


def test_without_a_file_there_is_none(policy: EdgePolicy) -> None:
    assert open_for(policy, None, "pick") is None
    assert policy.on_answer == []


def test_what_counts_as_agreeing_is_bounded() -> None:
    with pytest.raises(ConfigError, match="within_bins"):
        replace(LocalSettings(), within_bins=256)
