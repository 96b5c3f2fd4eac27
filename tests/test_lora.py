"""A LoRA adapter merged on the way through `split` gives the model that was trained, or is refused by name."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import splitvla_cloud.split as split_package
from benchmarks.tiny_checkpoint import write_tiny_checkpoint
from splitvla_cloud.__main__ import main
from splitvla_cloud.split import Checkpoint, split
from splitvla_shared.bundle import open_bundle
from splitvla_shared.errors import CheckpointError, ConfigError

Weights = dict[str, torch.Tensor]

STATISTICS = "dataset_statistics.json"
RANK, ALPHA = 8, 4
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "openvla/openvla-7b",
    "r": RANK,
    "lora_alpha": ALPHA,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "init_lora_weights": "gaussian",
    "target_modules": ["q_proj", "lm_head", "qkv", "proj", "fc1", "fc2", "fc3", "q", "kv"],
    "task_type": None,
}
HEAD = "language_model.lm_head"
PATCH_EMBED = "vision_backbone.featurizer.patch_embed.proj"
DEAD = ("vision_backbone.fused_featurizer.attn_pool.kv", "vision_backbone.featurizer.blocks.2.mlp.fc1")


def _adapted(weights: Weights) -> list[str]:
    """What peft calls all-linear: every linear layer and both patch convolutions, norms and embeddings left out."""
    return [
        name.removesuffix(".weight")
        for name, tensor in weights.items()
        if name.endswith(".weight") and tensor.dim() >= 2 and "embed_tokens" not in name
    ]


def _write_adapter(path: Path, base: Path, seed: int = 5, dtype: torch.dtype = torch.bfloat16) -> Weights:
    """An adapter in peft's layout, over everything that all-linear covers, dead modules and lm_head's copy included."""
    generator = torch.Generator().manual_seed(seed)
    weights, tensors = load_file(base / "model.safetensors"), {}
    for module in _adapted(weights):
        rows, *columns = weights[f"{module}.weight"].shape
        up = (rows, RANK, *(1,) * (len(columns) - 1))
        down = torch.randn(RANK, *columns, generator=generator) / math.sqrt(math.prod(columns))
        tensors[f"base_model.model.{module}.lora_A.weight"] = down.to(dtype)
        tensors[f"base_model.model.{module}.lora_B.weight"] = (0.2 * torch.randn(up, generator=generator)).to(dtype)
    tensors[f"base_model.model.{HEAD}.base_layer.weight"] = weights[f"{HEAD}.weight"]
    path.mkdir(parents=True)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(CONFIG))
    shutil.copyfile(base / STATISTICS, path / STATISTICS)
    return tensors


@pytest.fixture(scope="module")
def adapters(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    _write_adapter(folder / "run", tiny_checkpoint)
    return folder / "run"


@pytest.fixture
def adapter(adapters: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(adapters, tmp_path / "adapter"))


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        split_package, "export_encoder", lambda vision, tensors, path, report: path.write_bytes(b"graph")
    )


def _edit(adapter: Path, edit: Callable[[Weights], object]) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    edit(weights)
    save_file(weights, adapter / "adapter_model.safetensors")


def _configure(adapter: Path, **changes: Any) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG | changes))


def _merged_by_hand(base: Path, adapter: Path, scale: float) -> Weights:
    """The textbook sum, written without the code under test: whole matrices, one einsum a module."""
    weights, low_rank = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for module in _adapted(weights):
        down = low_rank[f"base_model.model.{module}.lora_A.weight"].float()
        up = low_rank[f"base_model.model.{module}.lora_B.weight"].float()
        delta = torch.einsum("or,r...->o...", up.reshape(len(up), -1), down)
        stored = weights[f"{module}.weight"]
        weights[f"{module}.weight"] = (stored.float() + scale * delta).to(stored.dtype)
    return weights


def _assert_reads_as(found: Checkpoint, expected: Weights) -> None:
    """Equal but for sums that lie on the edge between two numbers of the stored type."""
    for tensors, root in ((found.vision_tensors, ""), (found.language_tensors, "language_model.")):
        for name, entry in tensors.items():
            torch.testing.assert_close(entry.read(), expected[root + name], rtol=2**-7, atol=0, msg=name)
            same = (entry.read() == expected[root + name]).float().mean()
            assert same > 0.999, name


def test_a_merged_split_reads_as_the_checkpoint_merged_by_hand(tiny_checkpoint: Path, adapter: Path) -> None:
    base, found = Checkpoint.open(tiny_checkpoint), Checkpoint.open(tiny_checkpoint, adapter)
    _assert_reads_as(found, _merged_by_hand(tiny_checkpoint, adapter, ALPHA / RANK))
    for name in (f"{PATCH_EMBED}.weight", "projector.fc2.weight"):
        assert not torch.equal(found.vision_tensors[name].read(), base.vision_tensors[name].read())
    assert not torch.equal(
        found.language_tensors["lm_head.weight"].read(), base.language_tensors["lm_head.weight"].read()
    )
    assert found.name == "tiny+adapter"


@pytest.mark.usefixtures("no_export")
def test_the_bundle_and_its_fingerprint_are_those_of_the_merged_checkpoint(tmp_path: Path) -> None:
    """Float32 all through: the two ways of adding are then compared without a rounding between them."""
    write_tiny_checkpoint(tmp_path / "base", dtype=torch.float32)
    _write_adapter(tmp_path / "adapter", tmp_path / "base", dtype=torch.float32)
    spec = split(tmp_path / "base", tmp_path / "merged", adapter=tmp_path / "adapter")
    shutil.copytree(tmp_path / "base", tmp_path / "by-hand")
    read = Checkpoint.open(tmp_path / "base", tmp_path / "adapter")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights |= {name: entry.read() for name, entry in read.vision_tensors.items()}
    weights |= {f"language_model.{name}": entry.read() for name, entry in read.language_tensors.items()}
    save_file(weights, tmp_path / "by-hand" / "model.safetensors", metadata={"format": "pt"})
    assert split(tmp_path / "by-hand", tmp_path / "plain").fingerprint == spec.fingerprint
    assert open_bundle(tmp_path / "merged" / "cloud", "cloud").spec.fingerprint == spec.fingerprint
    expected = _merged_by_hand(tmp_path / "base", tmp_path / "adapter", ALPHA / RANK)
    for name, tensor in load_file(tmp_path / "merged" / "cloud" / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[f"language_model.{name}"], rtol=1e-5, atol=1e-6)
    assert split(tmp_path / "base", tmp_path / "bare").fingerprint != spec.fingerprint


def test_rank_stabilised_adapters_have_their_own_scale(tiny_checkpoint: Path, adapter: Path) -> None:
    _configure(adapter, use_rslora=True)
    found = Checkpoint.open(tiny_checkpoint, adapter)
    _assert_reads_as(found, _merged_by_hand(tiny_checkpoint, adapter, ALPHA / math.sqrt(RANK)))


def test_rows_that_are_merged_in_parts_are_those_of_the_whole(
    tiny_checkpoint: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Checkpoint.open(tiny_checkpoint, adapter).language_tensors["lm_head.weight"].read()
    monkeypatch.setattr("splitvla_cloud.split.lora._ROW_BYTES", 100_000)
    parts = Checkpoint.open(tiny_checkpoint, adapter).language_tensors["lm_head.weight"].read()
    assert (whole == parts).float().mean() > 0.999


def test_an_adapter_of_some_modules_leaves_the_others_alone(tiny_checkpoint: Path, adapter: Path) -> None:
    _edit(adapter, lambda w: [w.pop(name) for name in list(w) if "q_proj" not in name])
    base, found = Checkpoint.open(tiny_checkpoint), Checkpoint.open(tiny_checkpoint, adapter)
    changed = {
        name
        for name, entry in found.language_tensors.items()
        if not torch.equal(entry.read(), base.language_tensors[name].read())
    }
    assert changed == {f"model.layers.{index}.self_attn.q_proj.weight" for index in (0, 1)}
    assert found.vision_tensors == base.vision_tensors


def _only_mine(statistics: Path) -> str:
    return json.dumps({"mine": json.loads(statistics.read_text())["so100_tiny"]})


@pytest.mark.parametrize("given", ["run/lora_adapter", "run"])
@pytest.mark.parametrize("place", ["run/lora_adapter", "run"])
def test_the_statistics_of_the_fine_tune_win(tiny_checkpoint: Path, adapter: Path, given: str, place: str) -> None:
    """They lie beside the adapter, or in the run's folder above it, whichever of the two was given."""
    root = adapter.parent
    (root / "run").mkdir()
    mine = _only_mine(adapter / STATISTICS)
    (adapter / STATISTICS).unlink()
    adapter.rename(root / "run" / "lora_adapter")
    (root / place / STATISTICS).write_text(mine)
    found = Checkpoint.open(tiny_checkpoint, root / given)
    assert (list(found.statistics), found.max_action_dims) == (["mine"], 6)


def test_an_adapter_without_statistics_takes_those_of_its_base_only_when_told_to(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    """Training writes the adapter into one folder and the statistics into another: an arm moved by the base's
    numbers moves at the scale of another dataset."""
    (adapter / STATISTICS).unlink()
    with pytest.raises(CheckpointError, match=rf"{adapter} .*copy {STATISTICS}.*--base-statistics"):
        Checkpoint.open(tiny_checkpoint, adapter)
    base = Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))
    with pytest.raises(CheckpointError, match=f"copy {STATISTICS}"):  # the folder above is no run's but the base's
        Checkpoint.open(base, Path(shutil.copytree(adapter, base / "adapter")))
    found = Checkpoint.open(tiny_checkpoint, adapter, base_statistics=True)
    assert found.statistics == Checkpoint.open(tiny_checkpoint).statistics


@pytest.mark.parametrize("command", ["split", "verify"])
def test_the_commands_say_what_an_adapter_without_statistics_needs(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (adapter / STATISTICS).unlink()
    arguments = [command, str(tiny_checkpoint), {"split": "--out", "verify": "--bundles"}[command], str(tmp_path / "x")]
    assert main([*arguments, "--adapter", str(adapter)]) == CheckpointError.exit_code
    assert "--base-statistics" in capsys.readouterr().err
    assert main([*arguments, "--base-statistics"]) == ConfigError.exit_code
    assert "--base-statistics is about an adapter" in capsys.readouterr().err


def test_dead_modules_may_hold_anything(tiny_checkpoint: Path, adapter: Path) -> None:
    """Training adapts the attention pool and the last blocks too; no forward pass reads them."""
    names = [f"base_model.model.{module}.lora_B.weight" for module in DEAD]
    _edit(adapter, lambda w: [w[name].fill_(float("nan")) for name in names])
    for entry in Checkpoint.open(tiny_checkpoint, adapter).vision_tensors.values():
        assert torch.isfinite(entry.read()).all()


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "use_dora is True"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
    ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
]


@pytest.mark.parametrize(("change", "message"), OPTIONS, ids=[option[1] for option in OPTIONS])
def test_what_is_no_plain_lora_is_refused_with_the_way_out(
    tiny_checkpoint: Path, adapter: Path, change: dict[str, Any], message: str
) -> None:
    _configure(adapter, **change)
    with pytest.raises(CheckpointError, match=f"adapter_config.json: {message}.*merge_and_unload"):
        Checkpoint.open(tiny_checkpoint, adapter)


def _key(module: str, part: str) -> str:
    return f"base_model.model.{module}.{part}.weight"


Q = "language_model.model.layers.0.self_attn.q_proj"
UNKNOWN = "language_model.model.layers.7.mlp.x"
FAULTS: list[tuple[str, Callable[[Weights], object], str]] = [
    ("half", lambda w: w.pop(_key(Q, "lora_B")), f"{Q}.weight has only one of"),
    ("rank", lambda w: w.update({_key(Q, "lora_A"): torch.zeros(4, 128)}), r"has shape \[4, 128\].* says r = 8"),
    ("narrow", lambda w: w.update({_key(Q, "lora_A"): torch.zeros(8, 64)}), r"\[8, 64\], expected \[8, 128\]"),
    ("short", lambda w: w.update({_key(Q, "lora_B"): torch.zeros(64, 8)}), r"expected \[128, 8\].*openvla/openvla-7b"),
    ("conv", lambda w: w.update({_key(PATCH_EMBED, "lora_B"): torch.zeros(64, 8)}), r"expected \[64, 8, 1, 1\]"),
    (
        "unknown",
        lambda w: w.update({_key(UNKNOWN, part): torch.zeros(8, 8) for part in ("lora_A", "lora_B")}),
        "layers.7.mlp.x.weight, which the checkpoint does not have",
    ),
    ("dora", lambda w: w.update({f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(8)}), "only plain LoRA"),
    ("type", lambda w: w.update({_key(Q, "lora_A"): torch.zeros(8, 128, dtype=torch.int8)}), "is I8"),
    ("other base", lambda w: w[_key(HEAD, "base_layer")].add_(0.5), "trained on another base"),
    ("other head", lambda w: w.update({_key(HEAD, "base_layer"): torch.zeros(4, 4)}), "trained on another base"),
    ("empty", lambda w: [w.pop(name) for name in list(w) if "base_layer" not in name], "no lora_A"),
]


@pytest.mark.parametrize(("name", "edit", "message"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_an_adapter_that_does_not_fit_is_named(
    tiny_checkpoint: Path, adapter: Path, name: str, edit: Callable[[Weights], object], message: str
) -> None:
    _edit(adapter, edit)
    with pytest.raises(CheckpointError, match=f"adapter_model.safetensors.*{message}") as caught:
        Checkpoint.open(tiny_checkpoint, adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_a_number_that_is_none_is_named_and_nothing_is_written(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, part: str
) -> None:
    _edit(adapter, lambda w: w[_key(HEAD, part)][0].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=rf"adapter_model.safetensors: .*{HEAD}\.{part}\.weight holds NaN"):
        split(tiny_checkpoint, tmp_path / "out", adapter=adapter)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_a_truncated_adapter_is_named(tiny_checkpoint: Path, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors has \d+ bytes"):
        Checkpoint.open(tiny_checkpoint, adapter)


def test_a_pickled_adapter_is_refused_with_the_way_out(tiny_checkpoint: Path, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model.bin: opening a pickle.*safe_serialization=True"):
        Checkpoint.open(tiny_checkpoint, adapter)


@pytest.mark.parametrize("spoil", ["no folder", "no config", "no weights", "two adapters"])
def test_a_folder_that_is_no_adapter_is_named(tiny_checkpoint: Path, adapter: Path, spoil: str) -> None:
    given, message = {
        "no folder": (adapter / "nowhere", "nowhere is no folder"),
        "no config": (adapter, "no adapter_config.json"),
        "no weights": (adapter, "adapter_model.safetensors is missing"),
        "two adapters": (adapter.parent, "2 adapters"),
    }[spoil]
    if spoil == "no config":
        (adapter / "adapter_config.json").unlink()
    if spoil == "no weights":
        (adapter / "adapter_model.safetensors").unlink()
    if spoil == "two adapters":
        shutil.copytree(adapter, adapter.parent / "second")
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tiny_checkpoint, given)


def test_the_command_names_a_wrong_adapter_in_one_line(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _configure(adapter, use_dora=True)
    arguments = ["split", str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--adapter", str(adapter)]
    assert main(arguments) == CheckpointError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("splitvla-cloud: error:")
    assert not (tmp_path / "out").exists()
