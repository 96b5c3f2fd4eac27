"""The cloud half as transformers sees it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from splitvla_cloud.split.backbone_export import export_backbone
from splitvla_cloud.split.checkpoint import Checkpoint


def test_transformers_gives_the_reference_logits(reference_bundles: Path, reference_checkpoint: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(reference_bundles / "cloud", dtype=torch.float32)
    with np.load(reference_checkpoint / "golden.npz") as golden, torch.no_grad():
        out = model(inputs_embeds=torch.from_numpy(golden["fp32/prefill0/inputs_embeds"][None]))
        expected = golden["fp32/prefill0/last_logits"]
    logits = out.logits[0, -1].numpy()
    assert int(logits.argmax()) == int(expected.argmax())
    np.testing.assert_allclose(logits, expected, atol=5e-5, rtol=0)


def test_weights_keep_their_type_and_lose_their_prefix(tiny_bundles: Path, tiny_checkpoint: Path) -> None:
    whole = load_file(tiny_checkpoint / "model.safetensors")
    half = load_file(tiny_bundles / "cloud" / "model.safetensors")
    assert {f"language_model.{name}" for name in half} == {name for name in whole if name.startswith("language_model.")}
    assert all(torch.equal(tensor, whole[f"language_model.{name}"]) for name, tensor in half.items())
    assert half["lm_head.weight"].dtype == torch.bfloat16


def test_the_config_leaves_nothing_to_defaults(tiny_bundles: Path) -> None:
    config = json.loads((tiny_bundles / "cloud" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["rms_norm_eps"], config["rope_theta"], config["max_position_embeddings"]) == (1e-6, 10000.0, 2048)
    assert (config["tie_word_embeddings"], config["torch_dtype"], config["head_dim"]) == (False, "bfloat16", 32)
    model = LlamaForCausalLM.from_pretrained(tiny_bundles / "cloud")
    assert (model.dtype, model.config.rms_norm_eps) == (torch.bfloat16, 1e-6)
    assert model.config.rope_parameters["rope_theta"] == 10000.0


def test_a_large_model_is_cut_into_shards_that_transformers_opens(
    tiny_checkpoint: Path, tiny_bundles: Path, tmp_path: Path
) -> None:
    source = Checkpoint.open(tiny_checkpoint)
    written: list[int] = []
    export_backbone(
        source.language, source.language_tensors, source.path, tmp_path, written.append, shard_bytes=200_000
    )
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3
    assert sum(written) == sum(entry.size for entry in source.language_tensors.values())
    whole = LlamaForCausalLM.from_pretrained(tiny_bundles / "cloud").state_dict()
    cut = LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.filterwarnings("ignore::UserWarning:transformers")
def test_the_tokenizer_comes_along_without_remote_code(reference_bundles: Path, reference_checkpoint: Path) -> None:
    cloud = reference_bundles / "cloud"
    assert "auto_map" not in json.loads((cloud / "tokenizer_config.json").read_text())
    with np.load(reference_checkpoint / "golden.npz") as golden:
        prompts, expected = golden["prompts"], [golden[f"input_ids/{index}"] for index in range(3)]
    tokenizer = AutoTokenizer.from_pretrained(cloud)
    for prompt, ids in zip(prompts, expected, strict=True):
        assert tokenizer(str(prompt)).input_ids == ids.tolist()
