"""The language half of a cloud bundle on vLLM, in this process. vLLM is imported here alone, while loading."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from splitvla_cloud.backbone import TEXT_TOKENS, Decode, allowed_ids, fitting, read_config
from splitvla_cloud.engine.cuda import settle
from splitvla_cloud.engine.interface import Frame, Outcome, serve_alone
from splitvla_cloud.engine.vllm_engine import VllmEngine
from splitvla_cloud.engine.warm_up import warm_up
from splitvla_cloud.precision import NUMERICS, Precision, check_stored, select_device
from splitvla_cloud.settings import PRECISION_KEY
from splitvla_shared.bundle import Bundle
from splitvla_shared.errors import BundleError, ConfigError
from splitvla_shared.nouns import FloatArray

_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
_EMBEDDINGS = "model.embed_tokens.weight"
# vLLM splits a prefill that has more rows than this over several steps; what it sets aside grows with it.
_ROWS_A_STEP = 8192
_LARGEST_BLOCK = 256  # tokens of a block of its cache, at most
# The cache's size is given in bytes, so this only says how much of the GPU must be free for vLLM to start at all: by
# default 92 %, which another process on the same GPU makes untrue. What does not fit is found while loading.
_FREE_SHARE = 0.05
# Nothing of vLLM may face the network or ask it for anything, and it must live in this process. A user's own value of
# the last two wins: how many cores it is bound to, and how much it logs.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
_DEFAULTS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}


class VllmBackbone:
    """A loaded bundle; the worker's engine, and what the golden probe asks. One thread at a time."""

    def __init__(self, engine: VllmEngine, precision: Precision, description: str, allowed: range) -> None:
        self.engine, self.precision, self._description = engine, precision, description
        self.allowed = allowed
        self.pass_costs: Mapping[int, float] = {}

    @classmethod
    def load(
        cls, bundle: Bundle, precision: Precision, device: str, decode: Decode = "greedy", *, capacity: int = 1
    ) -> VllmBackbone:
        """Raises BundleError for a damaged folder, ConfigError where vLLM is absent or can't do what is asked."""
        check_stored(bundle.extra.get(PRECISION_KEY), precision, bundle.path)
        if precision not in _PRECISIONS:
            raise ConfigError(
                f"precision {precision} is not offered with engine vllm; use {' or '.join(_PRECISIONS)}, "
                "or engine torch"
            )
        device = select_device(device)
        vllm, version = _import_vllm(device)
        if device != "cpu":
            settle()
        config = read_config(bundle)
        tokens = min(bundle.spec.max_cameras * bundle.spec.patches + TEXT_TOKENS, int(config.max_position_embeddings))
        dtype = NUMERICS[precision].dtype
        embeddings = _read_embeddings(bundle.path).to(dtype)
        library = _start(vllm, bundle, config, dtype, device, capacity=capacity, tokens=tokens)
        allowed = allowed_ids(bundle, decode)
        ids = None if allowed is None else list(allowed)

        def params(count: int, logprobs: int) -> Any:
            return vllm.SamplingParams(
                temperature=0.0,
                max_tokens=count,
                logprobs=logprobs,
                allowed_token_ids=ids,
                ignore_eos=True,
                detokenize=False,
                output_kind=vllm.sampling_params.RequestOutputKind.DELTA,
            )

        eos = _read_eos(bundle.path)
        engine = VllmEngine(library, embeddings, params, _clean_cache, capacity=capacity, tokens=tokens, eos=eos)
        robots = f", {capacity} robots at once" if capacity > 1 else ""
        limited = ", action ids only" if allowed is not None else ""
        description = f"{precision} on {device} by vLLM {version}{robots}{limited}"
        return cls(engine, precision, description, range(engine.vocab_size) if allowed is None else allowed)

    @property
    def vocab_size(self) -> int:
        return self.engine.vocab_size

    @property
    def capacity(self) -> int:
        return self.engine.capacity

    def describe(self) -> str:
        return self._description

    def admit(self, frame: Frame) -> None:
        self.engine.admit(frame)

    def step(self) -> list[Outcome]:
        return self.engine.step()

    def cancel(self, frame: Frame) -> None:
        self.engine.cancel(frame)

    def score(self, prompt_ids: Sequence[int], patches: FloatArray, ids: Sequence[int]) -> FloatArray:
        """As `VllmEngine.score`."""
        return self.engine.score(prompt_ids, patches, ids)

    def full_answer(self, prompt_ids: Sequence[int], patches: FloatArray, dims: int) -> tuple[int, ...]:
        """The greedy ids of one frame, where an early end is an id like any other: for the golden probe."""
        frame = Frame(0, 0, tuple(prompt_ids), patches, dims, math.inf)
        return serve_alone(frame, lambda frame: self.engine.admit(frame, frozenset()), self.engine.step).ids

    def warm_up(self, patches: int, dims: int) -> None:
        """Run requests of usual length, so that the first robot does not pay for lazy initialisation."""
        self.pass_costs = warm_up(
            lambda frame: self.engine.admit(frame, frozenset()),
            self.engine.step,
            patches=(patches, self.engine.hidden),
            dims=dims,
            capacity=self.capacity,
        )


def _import_vllm(device: str) -> tuple[Any, str]:
    """The package and its version. Raises ConfigError where it is absent, or built for another kind of device."""
    if device not in ("cpu", "cuda:0"):
        raise ConfigError(f"engine vllm takes the first GPU it sees, not {device}; set CUDA_VISIBLE_DEVICES instead")
    os.environ.update(_ENVIRONMENT)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
        import vllm.sampling_params
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ConfigError(
            f"engine vllm needs vLLM, which is not here ({str(error)[:80]}); pip install 'splitvla[cloud,vllm]' "
            "or use engine torch"
        ) from error
    if current_platform.device_type != device.partition(":")[0]:
        raise ConfigError(f"this vLLM is built for {current_platform.device_type}, the device is {device}")
    return vllm, str(vllm.__version__)


def _start(
    vllm: Any, bundle: Bundle, config: Any, dtype: torch.dtype, device: str, *, capacity: int, tokens: int
) -> Any:
    """vLLM's LLMEngine on the bundle's folder, its cache as large as `capacity` sequences need."""
    from vllm.v1.engine.llm_engine import LLMEngine

    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
    blocks = capacity * (tokens // _LARGEST_BLOCK + 1) + 1
    on_gpu = {} if device == "cpu" else {"gpu_memory_utilization": _FREE_SHARE}
    arguments = vllm.EngineArgs(
        model=str(bundle.path),
        dtype=str(dtype).removeprefix("torch."),
        skip_tokenizer_init=True,
        enable_prompt_embeds=True,
        load_format="safetensors",
        generation_config="vllm",
        max_model_len=tokens,
        max_num_seqs=capacity,
        max_num_batched_tokens=max(tokens, min(capacity * tokens, _ROWS_A_STEP)),
        kv_cache_memory_bytes=blocks * _LARGEST_BLOCK * token_bytes,
        max_logprobs=-1,
        # Frames differ from the first patch on, and a step's ids are wanted when it ends.
        enable_prefix_caching=False,
        async_scheduling=False,
        # On a CPU there are no graphs to capture, and compiling takes longer than it saves.
        enforce_eager=device == "cpu",
        disable_log_stats=True,
        **on_gpu,
    )
    what, remedy = f"{bundle.path} with max_batch {capacity}", "serve with a smaller max_batch or on a larger GPU"
    try:
        with fitting(what, device, remedy):
            return LLMEngine.from_engine_args(arguments)
    except (ValueError, SafetensorError) as error:
        raise BundleError(f"vLLM can't load {bundle.path}: {str(error).splitlines()[0][:200]}") from error


def _clean_cache(worker: Any) -> None:
    """Runs where vLLM keeps its keys and values: 0 for what is not finite, the rest as it was."""
    for cache in worker.model_runner.kv_caches:
        cache.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def _read_embeddings(path: Path) -> torch.Tensor:
    """The embedding table. Raises BundleError when the folder holds none."""
    try:
        for file in sorted(path.glob("*.safetensors")):
            with safe_open(file, "pt") as weights:
                if _EMBEDDINGS in weights.keys():  # noqa: SIM118 - not a mapping
                    table: torch.Tensor = weights.get_tensor(_EMBEDDINGS)
                    return table
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: {error}; split again") from error
    raise BundleError(f"{path} holds no {_EMBEDDINGS}; split again")


def _read_eos(path: Path) -> frozenset[int]:
    """Ids that end an answer. Raises BundleError when the folder names none."""
    try:
        eos = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
        return frozenset(int(number) for number in (eos if isinstance(eos, list) else [eos]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}/generation_config.json names no eos_token_id; split again") from error
