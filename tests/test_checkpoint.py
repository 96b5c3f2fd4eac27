"""Reading checkpoints: what is understood, and how what is not is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.tiny_checkpoint import Sizes, write_tiny_checkpoint
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.split.prompt import PROMPT_V01, PROMPT_V02
from splitvla_cloud.split.tensor_file import read_header
from splitvla_shared.errors import CheckpointError
from splitvla_shared.spec import Resize

Weights = dict[str, torch.Tensor]


def _edit_json(file: Path, **changes: Any) -> None:
    data = json.loads(file.read_text())
    for key, value in changes.items():
        data[key] = data[key] | value if isinstance(value, dict) and key in data else value
    file.write_text(json.dumps(data))


def _edit_weights(path: Path, edit: Callable[[Weights], object]) -> None:
    weights = load_file(path / "model.safetensors")
    edit(weights)
    save_file(weights, path / "model.safetensors")


def test_the_reference_checkpoint_is_understood(reference_checkpoint: Path) -> None:
    found = Checkpoint.open(reference_checkpoint)
    dino, siglip = found.vision.towers
    assert (dino.dim, dino.depth, dino.heads, dino.mlp_dim, dino.registers, dino.has_cls) == (96, 2, 16, 384, 4, True)
    assert (siglip.dim, siglip.depth, siglip.heads, siglip.mlp_dim, siglip.registers) == (112, 3, 16, 420, 0)
    assert dino.layer_scale
    assert not siglip.layer_scale
    assert (found.vision.patches, found.vision.projector_widths, found.vision.resize) == (256, (832, 96, 96), 1)
    assert (found.language.rms_norm_eps, found.language.rope_theta, found.language.head_dim) == (1e-6, 10000.0, 16)
    assert (found.action_vocab_size, found.action_bins, found.suffix_token_id) == (32000, 256, 29871)
    assert found.prompt_template == PROMPT_V02


def test_the_own_checkpoint_ends_prompts_in_its_space_piece(tiny_checkpoint: Path) -> None:
    vocab = json.loads((tiny_checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    assert Checkpoint.open(tiny_checkpoint).suffix_token_id == vocab["▁"]


def test_a_v01_checkpoint_has_one_tower_letterbox_and_the_vicuna_prompt(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "old", layout="siglip-v01")
    found = Checkpoint.open(tmp_path / "old")
    assert [tower.prefix for tower in found.vision.towers] == ["vision_backbone.featurizer."]
    assert len(found.vision.projector_widths) == 2
    assert (found.vision.resize, found.vision.letterbox_fill) == (Resize.LETTERBOX, (127, 127, 127))
    assert found.prompt_template == PROMPT_V01


@pytest.mark.parametrize(
    ("folder", "backbone", "expected"),
    [
        ("pick_cup_v01", "llama2-7b-pure", PROMPT_V02),
        ("renamed", "vicuna-v15-7b", PROMPT_V01),
        ("openvla-v01-7b", None, PROMPT_V01),
        ("renamed", None, PROMPT_V02),
    ],
)
def test_the_folders_name_decides_on_the_prompt_only_where_no_backbone_is_named(
    checkpoint: Path, folder: str, backbone: str | None, expected: str
) -> None:
    _edit_json(checkpoint / "config.json", llm_backbone_id=backbone)
    named = checkpoint.rename(checkpoint.with_name(folder))
    assert Checkpoint.open(named).prompt_template == expected


def test_absent_text_fields_take_llama_defaults(checkpoint: Path) -> None:
    """openvla-7b names four fields; with the small tensors of this checkpoint the default width is then refused."""
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"] = {"model_type": "llama", "vocab_size": 1088}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight has shape \[1088, 128\], expected \[1088, 4096\]"):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("arguments", [{"num_heads": 8}, [{"num_heads": 8}, {"num_heads": 8}]])
def test_timm_model_args_say_how_many_heads(checkpoint: Path, arguments: Any) -> None:
    _edit_json(checkpoint / "config.json", timm_model_args=arguments)
    assert [tower.heads for tower in Checkpoint.open(checkpoint).vision.towers] == [8, 8]


def test_dataset_statistics_win_over_norm_stats(checkpoint: Path) -> None:
    file = checkpoint / "dataset_statistics.json"
    statistics = json.loads(file.read_text())
    file.write_text(json.dumps({"mine": statistics["so100_tiny"]}))
    found = Checkpoint.open(checkpoint)
    assert (list(found.statistics), found.max_action_dims) == (["mine"], 6)
    file.unlink()
    assert set(Checkpoint.open(checkpoint).statistics) == {"widowx_tiny", "so100_tiny"}


def test_shards_may_cut_through_a_layer(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_tiny_checkpoint(tmp_path / "cut", max_shard_bytes=300_000)
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 5
    whole, cut = Checkpoint.open(tiny_checkpoint), Checkpoint.open(tmp_path / "cut")
    assert list(cut.language_tensors) == list(whole.language_tensors)
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(cut.language_tensors[name].read(), whole.language_tensors[name].read())


def test_only_tensors_that_a_forward_pass_reads_are_kept(tiny_checkpoint: Path) -> None:
    names = " ".join(Checkpoint.open(tiny_checkpoint).vision_tensors)
    assert "blocks.1." in names
    assert not any(dead in names for dead in ("blocks.2.", "attn_pool", "featurizer.norm."))


CONFIG_FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("config.json", {"text_config": {"model_type": "qwen2"}}, "model_type is 'qwen2'"),
    ("config.json", {"text_config": {"tie_word_embeddings": True}}, "tie_word_embeddings"),
    ("config.json", {"text_config": {"hidden_act": "gelu"}}, "hidden_act is 'gelu'; only silu"),
    ("config.json", {"text_config": {"rope_scaling": {"type": "linear", "factor": 2}}}, "rope_scaling 'linear'"),
    (
        "config.json",
        {"text_config": {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_type": "linear", "factor": 2}}},
        "rope_parameters 'linear'",
    ),
    (
        "config.json",
        {"text_config": {"rope_theta": 10000, "rope_parameters": {"rope_type": "default", "rope_theta": 500000}}},
        "rope_theta is 10000, rope_parameters says 500000",
    ),
    ("config.json", {"text_config": {"num_attention_heads": 3}}, "does not divide into 3 heads"),
    ("config.json", {"text_config": {"num_hidden_layers": 3}}, "no tensor language_model.model.layers.2"),
    ("config.json", {"text_config": {"num_hidden_layers": 1}}, "unknown tensor language_model.model.layers.1"),
    ("config.json", {"text_config": {"hidden_size": "wide"}}, "hidden_size is 'wide', expected a whole number"),
    ("config.json", {"text_config": {"vocab_size": 2048}}, r"has shape \[1088, 128\], expected \[2048, 128\]"),
    ("config.json", {"pad_to_multiple_of": 1000}, "leaves no room for 256 action tokens"),
    ("config.json", {"timm_model_args": {"num_heads": 7}}, "does not divide into 7 heads"),
    ("config.json", {"timm_model_args": 7}, "timm_model_args must be"),
    ("config.json", {"timm_model_args": None, "timm_model_ids": ["vit_base_patch16_siglip_224"] * 2}, "whose heads"),
    ("config.json", {"timm_override_act_layers": ["quick_gelu"]}, "timm_override_act_layers"),
    ("config.json", {"use_fused_vision_backbone": "yes"}, "expected true or false"),
    ("dataset_statistics.json", {"widowx_tiny": {"action": {"q01": [0.0]}}}, "widowx_tiny.*q01"),
    ("tokenizer.json", {"model": {"vocab": {"a": 5000}}}, "token ids reach 5000"),
    ("tokenizer.json", {"model": {"vocab": {"a": 0}}}, "no piece '▁'"),
]


@pytest.mark.parametrize(("file", "change", "message"), CONFIG_FAULTS, ids=[fault[2] for fault in CONFIG_FAULTS])
def test_a_configuration_that_cannot_be_split_is_refused(
    checkpoint: Path, file: str, change: dict[str, Any], message: str
) -> None:
    _edit_json(checkpoint / file, **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file",
    ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors", "dataset_statistics.json"],
)
def test_a_file_of_garbage_is_named(checkpoint: Path, file: str) -> None:
    (checkpoint / file).write_bytes(b"\xff\x00 not what it should be")
    with pytest.raises(CheckpointError, match=file):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(checkpoint: Path, file: str) -> None:
    (checkpoint / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        Checkpoint.open(checkpoint)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is no folder"):
        Checkpoint.open(tmp_path / "nowhere")


WEIGHT_FAULTS: list[tuple[str, Callable[[Weights], object], str]] = [
    ("missing", lambda w: w.pop("projector.fc2.bias"), "no tensor projector.fc2.bias"),
    ("missing head", lambda w: w.pop("language_model.lm_head.weight"), "no tensor language_model.lm_head.weight"),
    ("missing tower", lambda w: w.pop("vision_backbone.featurizer.pos_embed"), "no tensor vision_backbone.featurizer"),
    (
        "quantized",
        lambda w: w.update({"projector.fc3.weight": w["projector.fc3.weight"].to(torch.int8)}),
        "projector.fc3.weight is I8; only F32, F16, BF16",
    ),
    (
        "misshapen",
        lambda w: w.update({"projector.fc3.bias": torch.zeros(64)}),
        r"projector.fc3.bias has shape \[64\], expected \[128\]",
    ),
    ("adapter", lambda w: w.update({"language_model.x.lora_A.weight": torch.zeros(1)}), "merge the adapter"),
    ("unknown", lambda w: w.update({"action_head.fc1.weight": torch.zeros(1)}), "unknown tensor action_head"),
]


@pytest.mark.parametrize(("name", "edit", "message"), WEIGHT_FAULTS, ids=[fault[0] for fault in WEIGHT_FAULTS])
def test_a_tensor_that_is_wrong_is_named(
    checkpoint: Path, name: str, edit: Callable[[Weights], object], message: str
) -> None:
    _edit_weights(checkpoint, edit)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(checkpoint)


def test_dead_weights_may_be_absent(checkpoint: Path) -> None:
    """Some fine-tuning scripts store no attention pool; nothing reads it."""
    _edit_weights(checkpoint, lambda w: [w.pop(name) for name in list(w) if "attn_pool" in name])
    assert Checkpoint.open(checkpoint).vision.patches == 256


def test_a_truncated_file_is_named(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model.safetensors has \d+ bytes, its header describes"):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize(("shape", "offsets"), [([4], [0, 8]), ([2], [8, 0]), ([2], [-8, 0]), ([-2], [0, 8])])
def test_a_tensor_that_would_reach_into_another_is_named(tmp_path: Path, shape: list[int], offsets: list[int]) -> None:
    """Or weights would be read from its neighbour's bytes, and nobody would see it."""
    entries = {
        "first": {"dtype": "F32", "shape": shape, "data_offsets": offsets},
        "second": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    }
    header = json.dumps(entries).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(CheckpointError, match=r"first \[.*\] F32 has -?\d+ bytes, expected"):
        read_header(file)


def test_a_header_that_places_two_tensors_on_the_same_bytes_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first, second = (f"vision_backbone.featurizer.blocks.0.norm{number}.weight" for number in (1, 2))
    header[second]["data_offsets"] = header[first]["data_offsets"]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(CheckpointError, match=r"model.safetensors: \S+ begins at byte \d+, expected \d+; download"):
        Checkpoint.open(checkpoint)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "cut", max_shard_bytes=1_000_000)
    next(iter(sorted((tmp_path / "cut").glob("model-00002*")))).unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-\d+.safetensors is missing"):
        Checkpoint.open(tmp_path / "cut")


@pytest.mark.parametrize("name", ["projector.fc4.weight", "projector.fc1.bias"], ids=["in no index", "in two files"])
def test_a_tensor_that_the_index_does_not_place_where_it_lies_is_named(tmp_path: Path, name: str) -> None:
    """transformers loads every tensor of a file that the index names, and of two the last."""
    write_tiny_checkpoint(tmp_path / "cut", max_shard_bytes=1_000_000)
    shard = max((tmp_path / "cut").glob("model-*.safetensors"))
    weights = load_file(shard)
    assert name not in weights
    save_file(weights | {name: torch.zeros(1)}, shard)
    with pytest.raises(CheckpointError, match=rf"{shard.name} has a tensor {name}, which .*index"):
        Checkpoint.open(tmp_path / "cut")


def test_an_index_cannot_point_out_of_the_folder(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "cut", max_shard_bytes=1_000_000)
    _edit_json(tmp_path / "cut" / "model.safetensors.index.json", weight_map={"projector.fc1.bias": "../x.safetensors"})
    with pytest.raises(CheckpointError, match="no file name of this folder"):
        Checkpoint.open(tmp_path / "cut")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_is_refused_with_the_way_out(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    with pytest.raises(CheckpointError, match=f"{name}.*runs whatever code.*safe_serialization=True"):
        Checkpoint.open(checkpoint)


@pytest.fixture
def oft(tmp_path: Path) -> Path:
    """The folder of a training run, around its adapter's."""
    (tmp_path / "oft" / "lora_adapter").mkdir(parents=True)
    return tmp_path / "oft"


@pytest.mark.parametrize("part", ["action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"])
def test_a_fine_tune_with_an_action_head_is_refused_although_its_weights_look_like_any_other_s(
    checkpoint: Path, oft: Path, part: str
) -> None:
    (oft / part).touch()
    with pytest.raises(CheckpointError, match=rf"oft holds an OpenVLA-OFT fine-tune \({part}\)"):
        Checkpoint.open(checkpoint, adapter=oft / "lora_adapter")
    (checkpoint / part).touch()
    with pytest.raises(CheckpointError, match="parallel decoding, which is not supported"):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("name", ["NUM_ACTIONS_CHUNK", "_regression_or_discrete_prediction"])
def test_a_fine_tune_in_parallel_decoding_without_a_head_is_known_by_its_code(
    checkpoint: Path, oft: Path, name: str
) -> None:
    """The discrete variant saves no part: its weights are those of any OpenVLA, and only its code file differs."""
    (oft / "modeling_prismatic.py").write_text(f"class OpenVLAForActionPrediction:\n    x = {name}\n")
    with pytest.raises(CheckpointError, match=r"oft holds an OpenVLA-OFT fine-tune \(modeling_prismatic.py\)"):
        Checkpoint.open(checkpoint, adapter=oft / "lora_adapter")
    plain = (checkpoint / "modeling_prismatic.py").write_text("class OpenVLAForActionPrediction:\n    pass\n")
    assert plain
    assert Checkpoint.open(checkpoint).vision.patches == 256
    shutil.copyfile(oft / "modeling_prismatic.py", checkpoint / "modeling_prismatic.py")
    with pytest.raises(CheckpointError, match=r"parallel decoding.*put back the file that your weights came with"):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize(
    "file",
    ["checkpoints/step-295000-epoch-40-loss=0.2200.pt", "latest-checkpoint.pt", "step-080000-epoch-09-loss=0.1.pt"],
)
def test_a_checkpoint_in_prismatics_own_layout_is_to_be_converted(tmp_path: Path, file: str) -> None:
    path = tmp_path / "openvla-7b-prismatic"
    (path / file).parent.mkdir(parents=True)
    (path / file).touch()
    for folder in (path, (path / file).parent):
        with pytest.raises(CheckpointError, match=r"is a Prismatic checkpoint.*convert_openvla_weights_to_hf.py"):
            Checkpoint.open(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_a_quantised_checkpoint_is_named_by_its_method(checkpoint: Path, method: str) -> None:
    _edit_json(checkpoint / "config.json", quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(CheckpointError, match=f"quantised by {method}.*take the checkpoint before quantizing"):
        Checkpoint.open(checkpoint)


def test_other_sizes_are_read_from_the_tensors(tmp_path: Path) -> None:
    sizes = Sizes(dino_dim=32, dino_blocks=2, siglip_dim=48, siglip_blocks=4, image_size=112, llm_layers=1)
    write_tiny_checkpoint(tmp_path / "small", sizes=sizes, dtype=torch.float16)
    found = Checkpoint.open(tmp_path / "small")
    assert [(tower.dim, tower.depth, tower.patches) for tower in found.vision.towers] == [(32, 1, 64), (48, 3, 64)]
    assert found.language_tensors["lm_head.weight"].dtype == "F16"
