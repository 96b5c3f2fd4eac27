"""Precisions whose layers are converted once loaded: the backbone still answers, and only GPUs that can serve them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from splitvla_cloud.backbone import Backbone, load_model
from splitvla_cloud.engine.fp8 import convert
from splitvla_cloud.golden import INSTRUCTION, check_backbone
from splitvla_cloud.precision import NUMERICS, Precision, check_device
from splitvla_cloud.prompt import Prompt
from splitvla_shared.bundle import open_bundle
from splitvla_shared.errors import ConfigError

CONVERTED: tuple[Precision, ...] = ("fp8", "int4")
# Of bf16's memory, on the small model: its head and embeddings stay as they are.
AT_MOST = {"fp8": 1.0, "int4": 0.65}


@pytest.mark.parametrize("precision", CONVERTED)
def test_a_converted_backbone_answers_its_probe_in_less_memory(precision: Precision, tiny_bundles: Path) -> None:
    bundle = open_bundle(tiny_bundles / "cloud", "cloud")
    model, _ = load_model(bundle, "bf16", "cpu")
    before, parameters = model.get_memory_footprint(), model.num_parameters()
    kind = NUMERICS[precision].convert
    assert kind is not None
    convert(model, kind)
    backbone = Backbone(model, precision, "cpu")
    check_backbone(backbone, Prompt.load(bundle.path, bundle.spec).ids(INSTRUCTION), bundle.spec, bundle.path)
    backbone.warm_up(bundle.spec.patches, 7)
    assert backbone.memory_bytes < AT_MOST[precision] * before
    assert backbone.parameters == parameters


@pytest.mark.parametrize("precision", CONVERTED)
def test_a_machine_is_told_what_a_converted_precision_needs(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = rf"{precision} needs a CUDA GPU of compute capability 8\.9.*use precision int8"
    with pytest.raises(ConfigError, match=needs):
        check_device(precision, "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ConfigError, match=rf"{precision} .*NVIDIA A100 has 8\.0; use precision int8"):
        check_device(precision, "cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_device(precision, "cuda:0")
