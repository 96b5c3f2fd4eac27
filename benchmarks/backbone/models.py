"""A Llama of a preset's size with random weights, made on the device, in a precision."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from benchmarks.checkpoint.language import llama_config
from benchmarks.checkpoint.sizes import PRESETS as CHECKPOINTS
from benchmarks.checkpoint.sizes import Sizes
from benchmarks.checkpoint.weights import LOUDNESS, plan
from splitvla_cloud.backbone import fitting
from splitvla_cloud.engine.fp8 import convert
from splitvla_cloud.precision import NUMERICS, Precision, check_device, keep_libraries_offline_and_quiet
from splitvla_shared.errors import ConfigError

PRESETS: dict[str, Sizes] = {
    "tiny": CHECKPOINTS["tiny"],
    "2-layer-7b": dataclasses.replace(CHECKPOINTS["7b"], llm_layers=2),
    "7b": CHECKPOINTS["7b"],
}
# Bytes a weight of a layer takes; for 64 weights nf4 has a float32 scale, int4 a bfloat16 one.
WEIGHT_BYTES: dict[str, float] = {"fp32": 4, "bf16": 2, "int8": 1, "nf4": 0.5 + 4 / 64, "fp8": 1, "int4": 0.5 + 2 / 64}
_ROOT = "language_model."


def random_llama(sizes: Sizes, precision: Precision, device: str, seed: int) -> Any:
    """A LlamaForCausalLM whose weights are drawn as those of a random checkpoint are; no id ends its answers.

    Raises ConfigError when it does not fit the device, or when the precision can't be made from random weights.
    """
    if precision not in WEIGHT_BYTES:
        raise ConfigError(f"precision {precision!r} is not measured here; any of {', '.join(WEIGHT_BYTES)}")
    check_device(precision, device)
    keep_libraries_offline_and_quiet()
    try:
        with fitting(f"a model of {sizes.llm_layers} layers in {precision}", device, "take another preset"):
            model = empty_llama(sizes, NUMERICS[precision].dtype, device)
            _draw(model, sizes, torch.Generator(device).manual_seed(seed))
            if NUMERICS[precision].quantization is not None:
                _quantise(model.model.layers, precision, device)
            if (kind := NUMERICS[precision].convert) is not None:
                convert(model, kind)
    except ImportError as error:
        raise ConfigError(f"precision {precision} needs a library that is not here: {error}") from error
    model.generation_config.eos_token_id = None
    return model.eval()


def empty_llama(sizes: Sizes, dtype: torch.dtype, device: str) -> Any:
    from transformers import LlamaForCausalLM

    config = llama_config(sizes)
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")


@torch.no_grad()
def _draw(model: Any, sizes: Sizes, generator: torch.Generator) -> None:
    parameters = dict(model.named_parameters())
    for planned in plan(sizes, "fused"):
        if planned.name.startswith(_ROOT):
            weight = parameters.pop(planned.name.removeprefix(_ROOT))
            weight.normal_(planned.mean, planned.std, generator=generator)
            weight[planned.loud_rows.start : planned.loud_rows.stop] *= LOUDNESS
    if parameters:
        raise ConfigError(f"the plan of a checkpoint does not name {', '.join(parameters)}")


def _quantise(layers: nn.Module, precision: Precision, device: str) -> None:
    """Every linear layer, as transformers does it while loading: bitsandbytes quantises what moves from the CPU."""
    for module in list(layers.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, _quantised(child.cpu(), precision).to(device))


def _quantised(layer: nn.Linear, precision: Precision) -> nn.Module:
    import bitsandbytes as bnb

    shape = (layer.in_features, layer.out_features)
    quantised: nn.Module
    if precision == "int8":
        quantised = bnb.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False, threshold=6.0)
        quantised.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        return quantised
    # As `serve` has it: transformers does not quantise the scales too, which is what bitsandbytes itself does.
    stored = {"compress_statistics": False, "quant_type": "nf4"}
    quantised = bnb.nn.Linear4bit(*shape, bias=False, compute_dtype=torch.bfloat16, **stored)
    quantised.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, **stored)
    return quantised
