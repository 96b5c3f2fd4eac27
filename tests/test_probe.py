"""The golden probe: the same inputs everywhere, answers of the unsplit model, and a wrong half refuses to start."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.tiny_checkpoint import Sizes, write_tiny_checkpoint
from splitvla_cloud.backbone import Backbone, Decode
from splitvla_cloud.engine.kv_cache import KVCache
from splitvla_cloud.golden import FLOORS, INSTRUCTION, CloudProbe, check_backbone
from splitvla_cloud.precision import NUMERICS, Precision
from splitvla_cloud.prompt import Prompt
from splitvla_cloud.server import ServerSettings, load_backbone
from splitvla_cloud.split import Checkpoint, split
from splitvla_cloud.split.encoder_export import load_edge_model
from splitvla_cloud.split.geometry import LanguageGeometry
from splitvla_cloud.split.streamed_llama import StreamedLlama
from splitvla_cloud.split.streamed_vit import streamed_edge_model
from splitvla_cloud.split.tensor_file import read_header
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.encoding.probe import check_encoder, check_sees, probed
from splitvla_edge.policy import EdgePolicy
from splitvla_shared.bundle import Bundle, open_bundle, write_manifest
from splitvla_shared.errors import BundleError, ServerFault
from splitvla_shared.nouns import ActionChunk, Image, Observation
from splitvla_shared.probe import (
    PROBE_FILE,
    EdgeProbe,
    blindness,
    probe_image,
    probe_patches,
    probe_said,
    probe_scale,
)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def edge(tiny_bundles: Path) -> Bundle:
    return open_bundle(tiny_bundles / "edge", "edge")


@pytest.fixture(scope="module")
def cloud(tiny_bundles: Path) -> Bundle:
    return open_bundle(tiny_bundles / "cloud", "cloud")


def test_the_inputs_are_the_same_on_every_machine() -> None:
    """Changing a formula makes every bundle out there fail its probe."""
    assert _digest(probe_image(224)) == "58b33164756935ac"
    assert _digest(probe_patches(256, 128, 0.0625)) == "e9b3656439283fbe"
    assert probe_said(range(31744, 32000), 7) == (31850, 31924, 31895, 31836, 31921, 31763, 31770)


def test_the_patches_are_as_loud_as_asked_and_exact_in_bfloat16() -> None:
    real = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32) * np.float32(3.7)
    patches = probe_patches(64, 32, probe_scale(real))
    assert 0.7 < patches.std() / real.std() < 1.42
    tensor = torch.from_numpy(patches)
    assert torch.equal(tensor.bfloat16().float(), tensor)
    assert probe_scale(np.zeros((2, 2), np.float32)) == 1.0


def test_a_streamed_llama_equals_transformers(tmp_path: Path) -> None:
    """Grouped keys, biases, another base of the rotation: all that a geometry can say."""
    geometry = LanguageGeometry(
        *(40, 32, 48, 2, 4, 2, 8, "silu", 64, 1e-5, 5000.0, True, True, 1, 2), pad_token_id=None
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        **dataclasses.asdict(geometry) | {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    state = {name: torch.randn_like(tensor) * 0.2 for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    save_file(state, tmp_path / "model.safetensors")
    entries = read_header(tmp_path / "model.safetensors")
    read: list[int] = []
    streamed = StreamedLlama(geometry, entries, read.append)
    ids = [1, 5, 9, 22, 3, 39]
    logits = streamed.logits(streamed.embed(ids), 4)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0, -4:]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert sum(read) == sum(entry.size for entry in entries.values()), "each tensor is read once"


def test_a_streamed_encoder_equals_the_loaded_one_and_keeps_no_layer(tiny_checkpoint: Path) -> None:
    source = Checkpoint.open(tiny_checkpoint)
    model = streamed_edge_model(source.vision, source.vision_tensors, lambda count: None)
    image = torch.from_numpy(probe_image(224))[None]
    with torch.inference_mode():
        streamed = model(image)
        assert torch.equal(streamed, load_edge_model(source.vision, source.vision_tensors)(image))
    kept = sum(parameter.nbytes for parameter in model.parameters() if not parameter.is_meta)
    assert 0 < kept < sum(parameter.nbytes for parameter in model.parameters()) / 4


def test_the_encoder_of_a_bundle_answers_its_probe(edge: Bundle) -> None:
    assert check_encoder(OnnxEncoder(edge), edge) < 1e-4


def test_an_encoder_that_computes_something_else_is_refused(edge: Bundle) -> None:
    class Brighter:
        """What a wrong colour order, a wrong normalisation or a fast but broken provider looks like."""

        def __init__(self) -> None:
            self._encoder = OnnxEncoder(edge)

        def embed(self, image: Image) -> np.ndarray:
            return self._encoder.embed(image[:, :, ::-1])

    with pytest.raises(BundleError, match=r"golden probe: the fp32 encoder .* differs .* by .*%, 1% is allowed"):
        probed(Brighter(), edge)


def test_a_policy_whose_encoder_is_not_the_one_that_was_split_does_not_open(edge: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(edge.path, tmp_path / "edge"))
    EdgeProbe.of(np.ones((edge.spec.patches, edge.spec.embed_dim), np.float32)).save(folder)
    write_manifest(folder, "edge", edge.spec, edge.extra)
    with pytest.raises(BundleError, match="golden probe: the fp32 encoder"):
        EdgePolicy.open(folder, "localhost:1", unnorm_key="widowx_tiny", threads=1)


def test_a_projection_tells_shapes_and_silence_apart() -> None:
    some, silence = EdgeProbe.of(probe_patches(4, 16, 1.0)), EdgeProbe.of(np.zeros((4, 16), np.float32))
    assert some.difference(some) == 0.0
    assert silence.difference(silence) == 0.0
    assert silence.difference(some) == np.inf
    assert some.difference(EdgeProbe.of(probe_patches(5, 16, 1.0))) == np.inf


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_a_backbone_answers_its_probe_in_every_precision(cloud: Bundle, precision: Precision) -> None:
    ids = Prompt.load(cloud.path, cloud.spec).ids(INSTRUCTION)
    check_backbone(Backbone.load(cloud, precision, "cpu"), ids, cloud.spec, cloud.path)


def test_a_deep_model_is_not_refused_for_its_rounding(tmp_path: Path) -> None:
    """Random weights amplify rounding from layer to layer; twelve of them made bf16 look like another model once."""
    write_tiny_checkpoint(tmp_path / "checkpoint", seed=3, sizes=Sizes(llm_layers=12))
    split(tmp_path / "checkpoint", tmp_path / "bundles")
    bundle = open_bundle(tmp_path / "bundles" / "cloud", "cloud")
    ids = Prompt.load(bundle.path, bundle.spec).ids(INSTRUCTION)
    for precision in FLOORS:
        if NUMERICS[precision].convert is not None:  # not served on a CPU; tests/test_fp8.py, tests/test_int4.py
            continue
        check_backbone(Backbone.load(bundle, precision, "cpu"), ids, bundle.spec, bundle.path)


def test_weights_that_are_not_those_of_the_split_refuse_to_serve(cloud: Bundle, tmp_path: Path) -> None:
    """Sums of files can't see this: a kernel that repacks weights wrongly, a GPU that miscalculates."""
    path = tmp_path / "cloud"
    shutil.copytree(cloud.path, path)
    weights = load_file(path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] = weights["model.layers.1.mlp.down_proj.weight"].flip(0)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    settings = ServerSettings(precision="fp32", device="cpu")
    with pytest.raises(
        ServerFault, match=r"golden probe: this backbone \(fp32 on cpu.*is not the model that was split"
    ):
        load_backbone(dataclasses.replace(cloud, path=path), settings)


@pytest.mark.parametrize("decode", ["greedy", "action-only"])
def test_a_backbone_that_decodes_otherwise_than_it_prefills_is_refused(
    cloud: Bundle, monkeypatch: pytest.MonkeyPatch, decode: Decode
) -> None:
    """One forward pass over what was said reads no cache and replays no graph; the frames of robots do."""
    backbone = Backbone.load(cloud, "fp32", "cpu", decode)
    ids = Prompt.load(cloud.path, cloud.spec).ids(INSTRUCTION)
    check_backbone(backbone, ids, cloud.spec, cloud.path)
    read = KVCache.read

    def stale(cache: KVCache, layer: int, slots: int, span: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = read(cache, layer, slots, span)
        return keys, values.flip(-1)

    monkeypatch.setattr(KVCache, "read", stale)
    with pytest.raises(ServerFault, match=r"golden probe: .* answers step by step .* not what it computes at once.*id"):
        check_backbone(backbone, ids, cloud.spec, cloud.path)


def test_the_answer_to_another_input_is_below_every_floor(cloud: Bundle) -> None:
    probe = CloudProbe.load(cloud.path)
    ids = Prompt.load(cloud.path, cloud.spec).ids("fold the towel")
    shape = (cloud.spec.patches, cloud.spec.embed_dim)
    logits = Backbone.load(cloud, "fp32", "cpu").score(ids, probe_patches(*shape, probe.scale * 4), probe.said)
    assert probe.correlation(logits).mean() < min(FLOORS.values())


def test_a_tokenizer_that_gives_another_prompt_is_refused(cloud: Bundle) -> None:
    with pytest.raises(BundleError, match="golden probe: the prompt"):
        check_backbone(Backbone.load(cloud, "fp32", "cpu"), [1, 2, 3], cloud.spec, cloud.path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "made by an older version.*split again"),
        ("{", "not valid JSON"),
        ('{"format": "splitvla-probe/2"}', "is no splitvla-probe/1"),
        ('{"format": "splitvla-probe/1", "projection": [[1]]}', r"projection has shape \(1, 1\)"),
    ],
)
def test_a_bundle_without_a_probe_that_can_be_read_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / PROBE_FILE).write_text(text)
    with pytest.raises(BundleError, match=message):
        EdgeProbe.load(tmp_path)


class _Policy:
    """Answers by the image's brightness; `blind` ones see every image alike."""

    def __init__(self, blind: bool) -> None:
        self._blind = blind

    def act(self, observation: Observation, *, deadline_s: float) -> ActionChunk:
        level = 0 if self._blind else int(observation.images[0].mean()) // 255
        return ActionChunk(0, np.zeros((1, 2)), "fake", tokens=(5 + level, 7))


def test_a_policy_that_answers_black_and_white_alike_is_refused() -> None:
    check_sees(_Policy(blind=False), 8, deadline_s=1.0)
    with pytest.raises(BundleError, match=r"^blind: a black and a white image give the same tokens.*\(5 7\)"):
        check_sees(_Policy(blind=True), 8, deadline_s=1.0)


def test_one_instruction_that_tells_black_from_white_is_enough() -> None:
    assert blindness([(1, 2), (3, 4)], [(1, 2), (3, 5)]) is None
    assert "blind" in str(blindness([(1, 2), (3, 4)], [(1, 2), (3, 4)]))
