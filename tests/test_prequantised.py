"""A backbone that `split --precision` stored quantised is the one that is quantised on loading, and starts as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import splitvla_cloud.split as split_package
from benchmarks.tiny_checkpoint import Sizes, write_tiny_checkpoint
from splitvla_cloud.__main__ import main
from splitvla_cloud.backbone import Backbone
from splitvla_cloud.precision import NUMERICS, Precision, Quantised, quantization_config
from splitvla_cloud.settings import PRECISION_KEY
from splitvla_cloud.split.backbone_export import export_backbone
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.split.quantised import write_quantised
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.errors import ConfigError

PRECISIONS: tuple[Quantised, ...] = get_args(Quantised)


def _export(checkpoint: Path, out: Path, plain: Bundle, precision: Quantised) -> Bundle:
    source = Checkpoint.open(checkpoint)
    out.mkdir()
    done: list[int] = []
    export_backbone(source.language, source.language_tensors, source.path, out, done.append, precision=precision)
    assert sum(done) == sum(entry.size for entry in source.language_tensors.values())
    return Bundle(out, "cloud", plain.spec, {PRECISION_KEY: precision})


@pytest.fixture(scope="module")
def plain(tiny_bundles: Path) -> Bundle:
    return open_bundle(tiny_bundles / "cloud", "cloud")


@pytest.fixture(scope="module")
def stored(tiny_checkpoint: Path, plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[Quantised, Bundle]:
    out = tmp_path_factory.mktemp("stored")
    return {precision: _export(tiny_checkpoint, out / precision, plain, precision) for precision in PRECISIONS}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_files_hold_what_transformers_itself_saves(
    stored: dict[Quantised, Bundle], plain: Bundle, tmp_path: Path, precision: Quantised
) -> None:
    """Its order is the one that avoids bitsandbytes' bug: quantise, save, and never a forward in between."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(
        plain.path, dtype=NUMERICS[precision].dtype, quantization_config=quantization_config(precision)
    )
    model.save_pretrained(tmp_path)
    theirs = load_file(tmp_path / "model.safetensors")
    mine = load_file(stored[precision].path / "model.safetensors")
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype, name
        assert torch.equal(mine[name].reshape(-1), tensor.reshape(-1)), name
    configs = [
        json.loads((path / "config.json").read_text())["quantization_config"]
        for path in (tmp_path, stored[precision].path)
    ]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_saved_and_reloaded_answers_as_quantised_live(
    stored: dict[Quantised, Bundle], plain: Bundle, precision: Quantised
) -> None:
    """Logits bit for bit, at the first forward (which repacks NF4 weights on a CPU) and at the second."""
    live, reloaded = (Backbone.load(bundle, precision, "cpu") for bundle in (plain, stored[precision]))
    patches = np.random.default_rng(3).standard_normal((plain.spec.patches, plain.spec.embed_dim), dtype=np.float32)
    for _ in range(2):
        expected, found = (backbone.score([1, 5, 6], patches, [800, 900, 1000]) for backbone in (live, reloaded))
        np.testing.assert_array_equal(found, expected)
    assert reloaded.infer([1, 5, 6], patches, 7).ids == live.infer([1, 5, 6], patches, 7).ids
    assert reloaded.memory_bytes == live.memory_bytes


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_stored_model_is_smaller_and_still_whole(
    stored: dict[Quantised, Bundle], plain: Bundle, precision: Quantised
) -> None:
    sizes = [(bundle.path / "model.safetensors").stat().st_size for bundle in (stored[precision], plain)]
    assert sizes[0] < 0.75 * sizes[1]
    assert (stored[precision].path / "tokenizer.json").is_file()
    assert Backbone.load(stored[precision], precision, "cpu").describe().startswith(f"{precision} on cpu")


@pytest.mark.parametrize("asked", ["fp32", "bf16", "int8"])
def test_serving_another_precision_than_was_stored_is_an_error_that_names_both(
    stored: dict[Quantised, Bundle], asked: Precision
) -> None:
    with pytest.raises(ConfigError, match=f"precision is {asked}, but .* `split --precision nf4` quantised"):
        Backbone.load(stored["nf4"], asked, "cpu")


def test_a_large_model_fills_several_files(
    tiny_checkpoint: Path, stored: dict[Quantised, Bundle], tmp_path: Path
) -> None:
    source = Checkpoint.open(tiny_checkpoint)
    files = write_quantised(source.language_tensors, tmp_path, "nf4", lambda count: None, shard_bytes=60_000)
    assert len(files) > 3
    assert sorted(files) == sorted(file.name for file in tmp_path.iterdir())
    assert next(iter(files)) == f"model-00001-of-{len(files):05d}.safetensors"
    cut = {name: tensor for file in files for name, tensor in load_file(tmp_path / file).items()}
    whole = load_file(stored["nf4"].path / "model.safetensors")
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_other_stored_types_are_quantised_from_bfloat16_as_on_loading(tmp_path: Path, plain: Bundle) -> None:
    write_tiny_checkpoint(tmp_path / "half", dtype=torch.float16, sizes=Sizes(llm_layers=1))
    source = Checkpoint.open(tmp_path / "half")
    (tmp_path / "plain").mkdir()
    export_backbone(source.language, source.language_tensors, source.path, tmp_path / "plain", lambda count: None)
    live = Backbone.load(Bundle(tmp_path / "plain", "cloud", plain.spec), "int8", "cpu")
    reloaded = Backbone.load(_export(tmp_path / "half", tmp_path / "int8", plain, "int8"), "int8", "cpu")
    patches = np.random.default_rng(3).standard_normal((plain.spec.patches, plain.spec.embed_dim), dtype=np.float32)
    expected, found = (backbone.score([1, 5, 6], patches, [800]) for backbone in (live, reloaded))
    np.testing.assert_array_equal(found, expected)


def test_the_command_stores_the_precision_in_the_bundle_and_keeps_the_fingerprint(
    tiny_checkpoint: Path, plain: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fingerprint is the model's: robots need no new bundle when the server's weights are stored otherwise."""
    monkeypatch.setattr(
        split_package, "export_encoder", lambda vision, tensors, path, report: path.write_bytes(b"graph")
    )
    assert main(["split", str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--precision", "int8"]) == 0
    found = open_bundle(tmp_path / "out" / "cloud", "cloud")
    assert (found.spec.fingerprint, found.extra[PRECISION_KEY]) == (plain.spec.fingerprint, "int8")
    assert Backbone.load(found, "int8", "cpu").vocab_size == 1088
