"""`--decode action-only`: the answer holds action ids alone, and is the reference's wherever that one does too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from splitvla_cloud.__main__ import main
from splitvla_cloud.backbone import Backbone
from splitvla_cloud.service import Answered
from splitvla_cloud.settings import ServerSettings
from splitvla_shared.actions import action_ids, detokenize
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.config import load_config
from splitvla_shared.errors import ConfigError, EarlyStop
from splitvla_shared.nouns import FloatArray
from splitvla_shared.wire import inference_pb2 as pb
from tests.cloud_fakes import WAIT_S, FakeBackbone, fake_bundle, request, serving

PROMPT = [1, 5, 6]
Patches = Callable[[int], FloatArray]


@pytest.fixture(scope="module")
def bundle(reference_bundles: Path) -> Bundle:
    return open_bundle(reference_bundles / "cloud", "cloud")


@pytest.fixture(scope="module")
def patches(bundle: Bundle) -> Patches:
    shape = (bundle.spec.patches, bundle.spec.embed_dim)
    return lambda seed: np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(3.0)


@pytest.fixture(scope="module")
def greedy(bundle: Bundle) -> Backbone:
    return Backbone.load(bundle, "fp32", "cpu")


@pytest.fixture(scope="module")
def action_only(bundle: Bundle) -> Backbone:
    return Backbone.load(bundle, "fp32", "cpu", "action-only")


def test_the_answer_is_the_references_until_that_one_leaves_the_bins(
    bundle: Bundle, greedy: Backbone, action_only: Backbone, patches: Patches
) -> None:
    """The reference checkpoint leaves the bins now and then on purpose."""
    actions = action_ids(bundle.spec.action_vocab_size, bundle.spec.action_bins)
    inside = 0
    for seed in range(12):
        free = greedy.full_answer(PROMPT, patches(seed), 7)
        held = action_only.infer(PROMPT, patches(seed), 7).ids
        assert all(number in actions for number in held)
        left = next((index for index, number in enumerate(free) if number not in actions), 7)
        assert held[:left] == free[:left]
        inside += left == 7
    assert 0 < inside < 12, "both kinds of answer must be met for this to mean anything"


def test_no_end_of_answer_can_come_early(action_only: Backbone, greedy: Backbone, patches: Patches) -> None:
    """</s> is no action id, so an action-only answer has its full length whatever the model prefers."""
    with torch.inference_mode():
        weight = greedy._model.lm_head.weight
        kept = weight[2].clone()
        weight[2] = weight[31800] * 50
    try:
        shared = Backbone(greedy._model, "fp32", "cpu", action_only.allowed)
        assert shared._eos == {2}
        assert len(shared.infer(PROMPT, patches(0), 7).ids) == 7
        with pytest.raises(EarlyStop):
            greedy.infer(PROMPT, patches(0), 7)
    finally:
        with torch.inference_mode():
            weight[2] = kept


def test_ties_give_the_lowest_id_of_the_range(greedy: Backbone) -> None:
    """Hidden states of zero make every logit equal."""
    zeros = torch.zeros(2, 96)
    llama = greedy.engine._llama
    assert llama.pick(zeros, None).tolist() == [[0, 1], [0, 1]]
    assert llama.pick(zeros, range(22, 30)).tolist() == [[22, 1], [22, 1]]


def test_an_answer_that_is_not_the_references_is_said_so(action_only: Backbone, greedy: Backbone) -> None:
    assert action_only.describe().endswith("action ids only")
    assert "action" not in greedy.describe()
    assert ServerSettings(precision="nf4", decode="action-only").numerics == "nf4, action-only"
    assert ServerSettings(precision="nf4").numerics == "nf4"


def test_action_ids_are_those_that_detokenising_does_not_clip() -> None:
    actions = action_ids(1024, 256)
    ids = [actions.start - 1, actions.start, actions.stop - 1, actions.stop]
    assert detokenize(ids, vocab_size=1024, bins=256).clipped == (0, 3)


def test_the_setting_is_checked_and_offered_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_config(ServerSettings, None, ["decode=action-only"]).decode == "action-only"
    with pytest.raises(ConfigError, match="decode"):
        load_config(ServerSettings, None, ["decode=beam"])
    assert main(["serve", "--decode", "action-only"]) == 2
    out, err = capsys.readouterr()
    assert "decode = 'action-only'" in out
    assert "--bundle DIR" in err


def test_the_server_describes_its_decoding_and_counts_clipped_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        backbone = FakeBackbone(lambda patches: (31800, 5, 32000, 31999, 31744, 31743, 31900))
        async with serving(
            fake_bundle(tmp_path), backbone, precision="bf16", decode="action-only", drain_s=0.0
        ) as served:
            described = await served.stub.Describe(pb.DescribeRequest(), timeout=WAIT_S)
            assert described.precision == "bf16, action-only"
            for sequence in (1, 2):
                await served.stub.Infer(request(sequence), timeout=WAIT_S)
            await served.server.drain()

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert "answered 2 frames; 6 of 14 tokens were no action tokens" in caplog.text


def test_counting_is_by_frame() -> None:
    counted = Answered().plus([1, 25], range(20, 30)).plus([29], range(20, 30))
    assert counted == Answered(frames=2, tokens=3, clipped=1)
