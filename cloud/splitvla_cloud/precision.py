"""The numeric types that the backbone's weights may have, and what each asks of transformers and bitsandbytes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from splitvla_cloud.engine.fp8 import FP8_CAPABILITY, FP8_FEATURES, Fp8Linear
from splitvla_cloud.engine.int4 import GROUP, Int4Linear
from splitvla_shared.errors import ConfigError

Precision = Literal["fp32", "bf16", "int8", "nf4", "fp8", "int4"]
Quantised = Literal["int8", "nf4"]

# Shapes that the CPU kernel of bitsandbytes repacks NF4 weights into; others raise deep inside the first forward.
_NF4_CPU_IN, _NF4_CPU_OUT = 64, 32


@dataclass(frozen=True, slots=True)
class Numerics:
    """dtype: of everything that is not quantised, and of the computation. quantization: BitsAndBytesConfig's fields.

    graphs: its kernels never wait for the device, so that a CUDA graph can hold them; LLM.int8 asks whether there are
    outliers, in every layer.
    convert: what stands for a plain linear layer of the blocks once the model is loaded; multiplied in 8-bit floats.
    inputs: a layer's inputs are a multiple of it where they are converted.
    """

    dtype: torch.dtype
    quantization: Mapping[str, Any] | None = None
    graphs: bool = False
    convert: Callable[[nn.Linear], nn.Module] | None = None
    inputs: int = FP8_FEATURES


NUMERICS: dict[Precision, Numerics] = {
    "fp32": Numerics(torch.float32, graphs=True),
    "bf16": Numerics(torch.bfloat16, graphs=True),
    "int8": Numerics(torch.bfloat16, {"load_in_8bit": True}),
    "nf4": Numerics(
        torch.bfloat16,
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
        graphs=True,
    ),
    "fp8": Numerics(torch.bfloat16, graphs=True, convert=Fp8Linear),
    "int4": Numerics(torch.bfloat16, graphs=True, convert=Int4Linear, inputs=GROUP),
}


def parse_precision(name: str) -> Precision:
    """Raises ConfigError for a name that is none."""
    for known in NUMERICS:
        if known == name:
            return known
    raise ConfigError(f"precision {name!r} is unknown; one of {', '.join(NUMERICS)}")


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """Names separated by commas; none for an empty text. Raises ConfigError."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    found = tuple(known for known in NUMERICS if known in names)
    if unknown := set(names) - set(found):
        raise ConfigError(f"precisions {sorted(unknown)} are unknown; any of {', '.join(NUMERICS)}")
    return found


def select_device(device: str) -> str:
    """ "auto" to a device that is there. Raises ConfigError for one that torch does not see."""
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is unknown; one of auto, cpu, cuda, cuda:N") from error
    if wanted.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r} is not supported; one of auto, cpu, cuda, cuda:N")
    seen = torch.cuda.device_count() if wanted.type == "cuda" else 1
    if (wanted.index or 0) >= seen:
        raise ConfigError(f"device {device!r}: torch {torch.__version__} sees {seen} CUDA devices; try device = auto")
    return f"cuda:{wanted.index or 0}" if wanted.type == "cuda" else "cpu"


def check_device(precision: Precision, device: str) -> None:
    """device: as `select_device` gives it. Raises ConfigError where 8-bit products have no tensor cores to run on."""
    if NUMERICS[precision].convert is None:
        return
    if device == "cpu":
        raise ConfigError(
            f"precision {precision} needs a CUDA GPU of compute capability 8.9 or later (Ada, Hopper), "
            "the device is cpu; use precision int8, nf4 or bf16"
        )
    if (capability := torch.cuda.get_device_capability(device)) < FP8_CAPABILITY:
        raise ConfigError(
            f"precision {precision} needs compute capability 8.9 or later (Ada, Hopper), "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}; use precision int8, nf4 or bf16"
        )


def check_shapes(precision: Precision, device: str, linears: Mapping[str, tuple[int, int]]) -> None:
    """linears: (in_features, out_features) by name. Raises ConfigError where a precision can't take one."""
    numerics = NUMERICS[precision]
    if numerics.convert is not None:
        for name, (fan_in, fan_out) in linears.items():
            if fan_in % numerics.inputs or fan_out % FP8_FEATURES:
                raise ConfigError(
                    f"precision {precision} takes layers of {numerics.inputs}n -> {FP8_FEATURES}m features, "
                    f"{name} is {fan_in} -> {fan_out}; use precision int8, nf4 or bf16"
                )
    if precision != "nf4" or device != "cpu":
        return
    for name, (fan_in, fan_out) in linears.items():
        if fan_in % _NF4_CPU_IN or fan_out % _NF4_CPU_OUT:
            raise ConfigError(
                f"precision nf4 on the CPU takes layers of {_NF4_CPU_IN}n -> {_NF4_CPU_OUT}m features, "
                f"{name} is {fan_in} -> {fan_out}; use a GPU, or precision int8 or bf16"
            )


def check_stored(stored: str | None, precision: Precision, bundle: Path) -> None:
    """stored: the bundle's PRECISION_KEY. Raises ConfigError when it holds quantised weights of another precision."""
    if stored is not None and stored != precision:
        raise ConfigError(
            f"precision is {precision}, but {bundle} holds weights that `split --precision {stored}` quantised;"
            f" use precision {stored}, or split again without --precision"
        )


def quantization_config(precision: Precision) -> Any:
    """transformers' BitsAndBytesConfig, or None for the types that are loaded as they are."""
    fields = NUMERICS[precision].quantization
    if fields is None:
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**fields)


def keep_libraries_offline_and_quiet() -> None:
    """Call before transformers is imported.

    bitsandbytes asks the hub for CPU kernels while it is imported, and runs what it gets: a robot's server fetches no
    code. Its warnings (no such kernel, a cast in every matmul) and the progress bars ask nothing of a user.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
