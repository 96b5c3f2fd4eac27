"""The backbone gives the reference's tokens in fp32, agrees by margin in bf16, and says clearly what it can't do."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from splitvla_cloud.backbone import Backbone, _read_model, check_loadable
from splitvla_cloud.precision import Precision
from splitvla_cloud.prompt import Prompt
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.errors import BundleError, ConfigError, EarlyStop, RequestRejected, ServerFault
from splitvla_shared.nouns import FloatArray

KEY = "tiny_bridge_orig"
# Where the reference itself was less sure than this, the order of two roundings decides. A bf16 logit of these models
# has steps of 0.016; LLM.int8 adds its own error.
SURE = {"bf16": 0.05, "int8": 0.15}


@pytest.fixture(scope="module")
def reference(reference_bundles: Path) -> Bundle:
    return open_bundle(reference_bundles / "cloud", "cloud")


@pytest.fixture(scope="module")
def tiny(tiny_bundles: Path) -> Bundle:
    return open_bundle(tiny_bundles / "cloud", "cloud")


@pytest.fixture(scope="module")
def golden(reference_checkpoint: Path) -> Any:
    return np.load(reference_checkpoint / "golden.npz")


@pytest.fixture(scope="module")
def tiny_fp32(tiny: Bundle) -> Backbone:
    return Backbone.load(tiny, "fp32", "cpu")


@pytest.fixture
def patches(tiny: Bundle) -> FloatArray:
    shape = (tiny.spec.patches, tiny.spec.embed_dim)
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32) * np.float32(0.05)


def test_fp32_gives_the_references_tokens_exactly(reference: Bundle, golden: Any) -> None:
    backbone, prompt = Backbone.load(reference, "fp32", "cpu"), Prompt.load(reference.path, reference.spec)
    prompts = [prompt.ids(str(instruction)) for instruction in golden["instructions"]]
    tokens = [
        [backbone.infer(ids, patches, 7).ids for ids in prompts] for patches in golden["fp32/projected"]
    ]  # 7 images, 3 prompts
    assert np.array_equal(tokens, golden[f"fp32/{KEY}/tokens"])


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_reduced_precision_agrees_wherever_the_reference_was_sure(
    reference: Bundle, golden: Any, precision: Precision
) -> None:
    """Teacher-forced on the reference's bf16 tokens, judged by its own margin between first and second."""
    backbone, prompt = Backbone.load(reference, precision, "cpu"), Prompt.load(reference.path, reference.spec)
    tokens, margin = golden[f"bf16/{KEY}/tokens"], golden[f"bf16/{KEY}/margin"]
    sure = margin > SURE[precision]
    assert sure.mean() > 0.3, "the bound leaves too little to judge"
    for image, patches in enumerate(golden["bf16/projected"]):
        for index, instruction in enumerate(golden["instructions"]):
            said = tokens[image, index]
            best = backbone.score(prompt.ids(str(instruction)), patches, said.tolist()).argmax(axis=-1)
            judged = sure[image, index]
            assert np.array_equal(best[judged], said[judged]), f"image {image}, prompt {index}"


def test_decoding_step_by_step_equals_scoring_at_once(tiny_fp32: Backbone, patches: FloatArray) -> None:
    ids = tiny_fp32.infer([1, 5, 6], patches, 7).ids
    assert len(ids) == 7
    assert tuple(tiny_fp32.score([1, 5, 6], patches, ids).argmax(axis=-1)) == ids


def test_nf4_runs_on_the_cpu_in_a_third_of_the_memory(tiny: Bundle, tiny_fp32: Backbone, patches: FloatArray) -> None:
    backbone = Backbone.load(tiny, "nf4", "auto" if not torch.cuda.is_available() else "cpu")
    backbone.warm_up(len(patches), 7)
    assert len(backbone.infer([1, 5, 6], patches, 7).ids) == 7
    assert backbone.parameters == tiny_fp32.parameters
    assert backbone.memory_bytes < tiny_fp32.memory_bytes / 2.5
    assert backbone.describe().startswith("nf4 on cpu")


def test_nf4_on_the_cpu_refuses_shapes_that_its_kernel_can_not_take(reference: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"q_proj is 96 -> 96; use a GPU"):
        Backbone.load(reference, "nf4", "cpu")


def test_an_end_of_answer_before_the_last_token_is_an_error(tiny_fp32: Backbone, patches: FloatArray) -> None:
    """The reference would slice the prompt into the action. As the last token it is an id like any other."""
    ids = tiny_fp32.full_answer([1, 5, 6], patches, 7)
    third = next(index for index in range(7) if ids[index] not in ids[:index] and index >= 1)
    ending = Backbone(tiny_fp32._model, "fp32", "cpu")
    ending._eos = frozenset({ids[third]})
    for draft in ((), ids):
        with pytest.raises(EarlyStop, match=f"position {third + 1} of 7"):
            ending.infer([1, 5, 6], patches, 7, draft)
    assert ending.infer([1, 5, 6], patches, third + 1).ids == ids[: third + 1]


def test_logits_that_are_not_finite_are_a_fault(tiny_fp32: Backbone, patches: FloatArray) -> None:
    patches[0, 0] = np.nan
    with pytest.raises(ServerFault, match="position 1 is not finite: an embedding beyond what this precision holds"):
        tiny_fp32.infer([1, 5, 6], patches, 7)


def test_a_sequence_beyond_the_context_is_refused(tiny_fp32: Backbone, patches: FloatArray) -> None:
    with pytest.raises(RequestRejected, match="the model takes 1024"):
        tiny_fp32.infer([1] * 1800, patches, 7)


def _scarce(*args: object, **named: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.29 GiB.\nSee the documentation")


def _scarce_host(*args: object, **named: object) -> None:
    torch.empty(2**58)


def _scarce_driver(*args: object, **named: object) -> None:
    raise RuntimeError("CUDA error: out of memory")


@pytest.mark.parametrize(
    ("scarce", "said"),
    [
        (_scarce, r"CUDA out of memory.*GiB\."),
        (_scarce_host, "can't allocate memory"),
        (_scarce_driver, "CUDA error: out"),
    ],
)
def test_a_cache_that_does_not_fit_is_a_matter_of_the_settings(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, scarce: Callable[..., None], said: str
) -> None:
    """Weights may fit where the keys and values of so many robots, and the buffers, do not; pinned ones are the
    host's and the driver's matter."""
    monkeypatch.setattr("splitvla_cloud.backbone.TorchEngine", scarce)
    says = rf"^bf16 with max_batch 16 does not fit cpu \(.*{said}.*\); .*smaller max_batch.*int8 or nf4$"
    with pytest.raises(ConfigError, match=says):
        Backbone.load(tiny, "bf16", "cpu", capacity=16)


def test_the_remedy_of_a_command_that_serves_nobody_names_no_max_batch(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`verify` and `measure-codec` take no such option."""
    monkeypatch.setattr("splitvla_cloud.backbone.TorchEngine", _scarce)
    with pytest.raises(ConfigError, match=r"^bf16 does not fit cpu \(CUDA out of memory.*; try precision int8 or nf4$"):
        Backbone.load(tiny, "bf16", "cpu")


def test_weights_that_do_not_fit_while_they_are_converted_are_too(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitvla_cloud.backbone.convert", _scarce)
    with pytest.raises(ConfigError, match=r"^fp8 does not fit cpu .*; try precision int8 or nf4$"):
        _read_model(tiny, "fp8", "cpu")


def test_on_a_gpu_the_numbers_are_settled_before_anything_is_computed(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`verify` asks the unsplit model first: in an image that switches TF32 on, it would answer in it."""
    settled = list[str]()
    monkeypatch.setattr("splitvla_cloud.backbone.select_device", lambda device: device)
    monkeypatch.setattr("splitvla_cloud.backbone.settle", lambda: settled.append("settled"))
    assert check_loadable(tiny, "fp32", "cpu") == "cpu"
    assert not settled
    assert check_loadable(tiny, "fp32", "cuda:0") == "cuda:0"
    assert settled == ["settled"]


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta"])
def test_a_device_that_is_not_here_is_named(tiny: Bundle, device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        Backbone.load(tiny, "fp32", device)


def _without_a_weight(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def _pickled(path: Path) -> None:
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_a_weight, "missing keys.*up_proj"),
        (_pickled, "holds no LlamaForCausalLM"),
        (lambda path: (path / "model.safetensors").write_bytes(b"junk" * 10), "holds no LlamaForCausalLM"),
        (lambda path: (path / "config.json").unlink(), "holds no LlamaForCausalLM"),
    ],
    ids=["weight missing", "pickle", "junk", "no config"],
)
def test_a_folder_that_is_no_whole_model_is_refused(tiny: Bundle, tmp_path: Path, spoil: Any, message: str) -> None:
    """transformers would fill a missing weight with noise, and would read a pickle."""
    shutil.copytree(tiny.path, tmp_path / "cloud")
    spoil(tmp_path / "cloud")
    with pytest.raises(BundleError, match=message):
        Backbone.load(dataclasses.replace(tiny, path=tmp_path / "cloud"), "fp32", "cpu")


def test_a_backbone_of_another_width_is_refused(tiny: Bundle) -> None:
    other = dataclasses.replace(tiny, spec=dataclasses.replace(tiny.spec, embed_dim=64))
    with pytest.raises(BundleError, match="128 wide, the spec says 64"):
        Backbone.load(other, "fp32", "cpu")
