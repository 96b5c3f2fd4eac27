"""Checkpoints of the real size: how they are cut into files, that they open, and that reading them takes little memory.

The weights of most of them are holes in a file, which is all that headers need.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from benchmarks.checkpoint import PRESETS, Sizes, lay_out, write_checkpoint
from benchmarks.checkpoint.weights import Planned
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_shared.errors import CheckpointError

ROOT = Path(__file__).resolve().parent.parent
GIGABYTE = 1_000_000_000


def _weight_bytes(tensors: list[Planned]) -> int:
    return 2 * sum(math.prod(tensor.shape) for tensor in tensors)


def test_files_of_7_gb_are_those_of_openvla_7b(tmp_path: Path) -> None:
    shards = lay_out(tmp_path / "model", sizes=PRESETS["7b"], max_shard_bytes=7 * GIGABYTE)
    assert [(_weight_bytes(tensors), len(tensors)) for _, tensors in shards] == [
        (6_948_858_752, 805),
        (6_971_211_776, 154),
        (1_162_403_840, 23),
    ]
    assert shards[0][1][-1].name == "language_model.model.layers.12.mlp.gate_proj.weight"
    assert shards[1][1][-1].name == "language_model.model.layers.29.mlp.up_proj.weight"


def test_files_of_5_gb_are_those_of_merged_fine_tunes(tmp_path: Path) -> None:
    shards = lay_out(tmp_path / "model", sizes=PRESETS["7b"], max_shard_bytes=5 * GIGABYTE)
    assert [round(_weight_bytes(tensors) / GIGABYTE, 2) for _, tensors in shards] == [4.93, 4.95, 4.95, 0.26]
    assert [tensor.name for tensor in shards[3][1]] == ["language_model.lm_head.weight"]


@pytest.mark.parametrize(("limit", "files"), [(7 * GIGABYTE, 3), (5 * GIGABYTE, 4)])
def test_the_full_size_opens_from_files_that_cut_through_layers(tmp_path: Path, limit: int, files: int) -> None:
    shards = lay_out(tmp_path / "openvla-7b", sizes=PRESETS["7b"], max_shard_bytes=limit)
    found = Checkpoint.open(tmp_path / "openvla-7b")
    assert (found.vision.embed_dim, found.language.num_hidden_layers, len(shards)) == (4096, 32, files)
    holders = [
        {entry.file for name, entry in found.language_tensors.items() if name.startswith(f"model.layers.{index}.")}
        for index in range(32)
    ]
    assert sum(len(layer) == 2 for layer in holders) == 2, "two of the cuts go through a layer"
    assert {entry.file for entry in found.vision_tensors.values()} == {shards[0][0]}


def test_a_text_config_of_four_keys_means_llama_2_7b_with_its_own_epsilon(tmp_path: Path) -> None:
    lay_out(tmp_path / "model", sizes=PRESETS["7b"])
    text = json.loads((tmp_path / "model" / "config.json").read_text())["text_config"]
    assert set(text) == {"model_type", "pad_token_id", "torch_dtype", "vocab_size"}
    language = Checkpoint.open(tmp_path / "model").language
    assert (language.hidden_size, language.intermediate_size, language.num_hidden_layers) == (4096, 11008, 32)
    assert (language.num_attention_heads, language.num_key_value_heads, language.head_dim) == (32, 32, 128)
    assert (language.rms_norm_eps, language.rope_theta, language.max_position_embeddings) == (1e-6, 10000.0, 2048)


def test_a_full_size_v01_checkpoint_opens(tmp_path: Path) -> None:
    lay_out(tmp_path / "model", sizes=PRESETS["7b"], layout="siglip-v01", max_shard_bytes=7_000_000_000)
    vision = Checkpoint.open(tmp_path / "model").vision
    assert (len(vision.towers), vision.towers[0].dim, vision.projector_widths) == (1, 1152, (4096, 4096))


def test_a_missing_shard_of_the_full_size_is_named(tmp_path: Path) -> None:
    shards = lay_out(tmp_path / "model", sizes=PRESETS["7b"], max_shard_bytes=7_000_000_000)
    shards[1][0].unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors is missing"):
        Checkpoint.open(tmp_path / "model")


def test_a_cut_off_shard_of_the_full_size_is_named(tmp_path: Path) -> None:
    shards = lay_out(tmp_path / "model", sizes=PRESETS["7b"], max_shard_bytes=7_000_000_000)
    with shards[2][0].open("r+b") as stream:
        stream.truncate(1_000_000_000)
    with pytest.raises(CheckpointError, match=r"model-00003-of-00003.safetensors has 1000000000 bytes"):
        Checkpoint.open(tmp_path / "model")


def test_a_full_vocabulary_holds_every_id_and_the_space_where_openvla_looks_for_it(tmp_path: Path) -> None:
    lay_out(tmp_path / "model", sizes=PRESETS["half"])
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert sorted(tokenizer.get_vocab().values()) == list(range(32001))
    assert tokenizer.token_to_id("▁") == 29871 == Checkpoint.open(tmp_path / "model").suffix_token_id
    assert tokenizer.decode(tokenizer.encode("In: put spoon on towel").ids) == "In: put spoon on towel"


def test_drawing_some_rows_at_a_time_keeps_rows_loud_and_numbers_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.checkpoint.weights._DRAWN_AT_ONCE", 700)
    tensor = Planned("head", (100, 64), std=0.5, loud_rows=range(35, 70))
    parts = list(tensor.draw(torch.Generator().manual_seed(0), torch.float32))
    assert len(parts) == 10
    spread = torch.cat(parts).std(dim=1)
    assert bool((spread[35:70] > 4).all())
    assert bool((spread[:35] < 1).all())
    assert bool((spread[70:] < 1).all())


def test_a_sharded_checkpoint_holds_the_numbers_of_the_single_file(tmp_path: Path) -> None:
    for name, limit in (("one", None), ("many", 400_000)):
        write_checkpoint(tmp_path / name, sizes=Sizes(llm_layers=1), max_shard_bytes=limit)
    one, many = (Checkpoint.open(tmp_path / name) for name in ("one", "many"))
    for name, entry in one.language_tensors.items():
        assert torch.equal(entry.read(), many.language_tensors[name].read())


def test_the_generator_s_files_are_what_the_library_reads(tiny_checkpoint: Path) -> None:
    with safe_open(tiny_checkpoint / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        head = file.get_tensor("language_model.lm_head.weight").float()
    assert head[768:1024].std() > 8 * head[:768].std()


def test_the_command_writes_a_preset_with_another_depth(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.random_checkpoint", str(tmp_path / "out"), "--llama-layers", "3"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=60)
    assert Checkpoint.open(tmp_path / "out").language.num_hidden_layers == 3


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """330 MB in tensors of up to 33 MB pass through a process that may hold 150 MB more than it began with."""
    sizes = Sizes(llm_dim=1024, llm_mlp=4096, llm_layers=8, llm_heads=8, action_vocab_size=16000)
    lay_out(tmp_path / "model", sizes=sizes)
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from splitvla_cloud.split.backbone_export import export_backbone
        from splitvla_cloud.split.checkpoint import Checkpoint
        from splitvla_cloud.split.fingerprint import tensors_sha256
        source = Checkpoint.open(Path(sys.argv[1]))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tensors_sha256(source.language_tensors, {}, lambda count: None)
        out = Path(sys.argv[2])
        out.mkdir()
        export_backbone(source.language, source.language_tensors, source.path, out, lambda count: None)
        total = sum(entry.size for entry in source.language_tensors.values())
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, total)
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model"), str(tmp_path / "out")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    grown, total = (int(number) for number in done.stdout.split())
    assert total > 300_000_000
    assert grown < 150_000_000
