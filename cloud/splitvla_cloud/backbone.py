"""The language half of the model on one device: prompt ids and patches in, greedy action tokens out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from splitvla_cloud.engine.cuda import CudaGraphs, out_of_memory, settle
from splitvla_cloud.engine.fp8 import convert
from splitvla_cloud.engine.host_memory import keep_freed_memory
from splitvla_cloud.engine.int4 import Int4Linear
from splitvla_cloud.engine.interface import Frame, Outcome, Tokens, serve_alone
from splitvla_cloud.engine.llama import Llama
from splitvla_cloud.engine.torch_engine import TorchEngine
from splitvla_cloud.engine.warm_up import warm_up
from splitvla_cloud.precision import (
    NUMERICS,
    Precision,
    check_device,
    check_shapes,
    check_stored,
    keep_libraries_offline_and_quiet,
    quantization_config,
    select_device,
)
from splitvla_cloud.settings import PRECISION_KEY
from splitvla_shared.actions import action_ids
from splitvla_shared.bundle import Bundle
from splitvla_shared.errors import BundleError, ConfigError
from splitvla_shared.nouns import FloatArray

# A prompt around the longest legal instruction has fewer, unless it is written in rare scripts.
TEXT_TOKENS = 768
# Prompts of these lengths and less have their CUDA graphs; longer ones run without.
_TEXT_BUCKETS = (32, 64)

_SMALLER = "try precision int8 or nf4"

Decode = Literal["greedy", "action-only"]


class Backbone:
    """A loaded LlamaForCausalLM with our engine on it; one thread at a time.

    model: a LlamaForCausalLM in the precision. allowed: the ids that an answer may hold, None for the whole vocabulary.
    capacity: robots served at once. tokens: of the longest sequence, None for what the model takes. graphs: passes that
    `warm_up` captured as CUDA graphs.
    """

    def __init__(
        self,
        model: Any,
        precision: Precision,
        device: str,
        allowed: range | None = None,
        *,
        capacity: int = 1,
        tokens: int | None = None,
    ) -> None:
        if device == "cpu":
            keep_freed_memory()
        else:
            settle()
        self._model = model
        self.allowed = range(self.vocab_size) if allowed is None else allowed
        self.precision = precision
        self.device = device
        self.pass_costs: Mapping[int, float] = {}
        self.graphs = 0
        eos = model.generation_config.eos_token_id
        self._eos = frozenset(eos if isinstance(eos, list) else [eos])
        context = int(model.config.max_position_embeddings)
        tokens = context if tokens is None else min(tokens, context)
        self.engine = TorchEngine(
            Llama(model, tokens),
            vocab_size=self.vocab_size,
            capacity=capacity,
            tokens=tokens,
            eos=self._eos,
            allowed=allowed,
        )

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        precision: Precision,
        device: str,
        decode: Decode = "greedy",
        *,
        capacity: int = 1,
    ) -> Backbone:
        """Read the bundle's LlamaForCausalLM folder, offline and from safetensors only.

        Raises BundleError when the folder does not hold such a model, and ConfigError when device or precision do not
        fit this machine.
        """
        model, device = load_model(bundle, precision, device)
        tokens = bundle.spec.max_cameras * bundle.spec.patches + TEXT_TOKENS
        # `verify` and `measure-codec` ask for one place, and have no max_batch to make smaller.
        what: str = precision
        remedy = _SMALLER
        if capacity > 1:
            what = f"{precision} with max_batch {capacity}"
            remedy = "serve with a smaller max_batch, or precision int8 or nf4"
        with fitting(what, device, remedy):
            backbone = cls(model, precision, device, allowed_ids(bundle, decode), capacity=capacity, tokens=tokens)
        if not backbone._eos - {None}:
            raise BundleError(f"{bundle.path}/generation_config.json names no eos_token_id; split again")
        return backbone

    @property
    def vocab_size(self) -> int:
        return int(self._model.config.vocab_size)

    @property
    def capacity(self) -> int:
        return self.engine.capacity

    @property
    def parameters(self) -> int:
        packed = (each for each in self._model.modules() if isinstance(each, Int4Linear))
        return int(self._model.num_parameters()) + sum(each.weight.numel() for each in packed)  # two a byte

    @property
    def memory_bytes(self) -> int:
        """Weights and buffers as they lie on the device."""
        return int(self._model.get_memory_footprint())

    def describe(self) -> str:
        """One line for people: precision, device, parameters, memory."""
        size = f"{self.parameters / 1e6:,.1f} M parameters, {self.memory_bytes / 2**20:,.0f} MiB"
        name = torch.cuda.get_device_name(self.device) if self.device != "cpu" else f"{torch.get_num_threads()} threads"
        robots = f", {self.capacity} robots at once" if self.capacity > 1 else ""
        limited = ", action ids only" if len(self.allowed) < self.vocab_size else ""
        graphs = f", {self.graphs} CUDA graphs" if self.device != "cpu" else ""
        return f"{self.precision} on {self.device} ({name}), {size}{robots}{limited}{graphs}"

    def admit(self, frame: Frame) -> None:
        self.engine.admit(frame)

    def step(self) -> list[Outcome]:
        return self.engine.step()

    def cancel(self, frame: Frame) -> None:
        self.engine.cancel(frame)

    def infer(self, prompt_ids: Sequence[int], patches: FloatArray, dims: int, draft: Sequence[int] = ()) -> Tokens:
        """Greedy ids, `dims` of them (chunk length times action dimensions), among the allowed ones.

        patches: float32 (n, embed_dim), put behind the first prompt id (BOS). draft: a guess, which never changes the
        answer. Raises RequestRejected when prompt and patches exceed the model's context, EarlyStop and ServerFault as
        `engine.answer` does.
        """
        return self._alone(Frame(0, 0, tuple(prompt_ids), patches, dims, math.inf, tuple(draft)), self._eos)

    def full_answer(self, prompt_ids: Sequence[int], patches: FloatArray, dims: int) -> tuple[int, ...]:
        """The ids of `infer` where an early end is an id like any other: for comparisons, never for a robot."""
        return self._alone(Frame(0, 0, tuple(prompt_ids), patches, dims, math.inf), frozenset()).ids

    def score(self, prompt_ids: Sequence[int], patches: FloatArray, ids: Sequence[int]) -> FloatArray:
        """Teacher-forced logits, float32 (len(ids), vocabulary): what the model says where it has said `ids[:i]`."""
        logits: FloatArray = self.engine.score(prompt_ids, patches, ids).cpu().numpy()
        return logits

    def warm_up(self, patches: int, dims: int) -> None:
        """Run requests of usual length, so that the first robot does not pay for lazy initialisation.

        On CUDA the passes of usual shapes are captured as graphs first, where the precision can be.
        """
        if self.device != "cpu" and NUMERICS[self.precision].graphs:
            lengths = [patches + text + dims for text in _TEXT_BUCKETS]
            self.graphs = self.engine.capture(lengths, dims, CudaGraphs(self.device))
        self.pass_costs = warm_up(
            lambda frame: self.engine.admit(frame, frozenset()),
            self.engine.step,
            patches=(patches, self._model.config.hidden_size),
            dims=dims,
            capacity=self.capacity,
        )

    def _alone(self, frame: Frame, eos: frozenset[int]) -> Tokens:
        return serve_alone(frame, lambda frame: self.engine.admit(frame, eos), self.engine.step)


def check_loadable(bundle: Bundle, precision: Precision, device: str) -> str:
    """The device that is meant, once all is checked that costs no time. Raises what `Backbone.load` raises.

    Sets the process up for it, so that what is computed before the backbone to hold it against, is computed alike.
    """
    check_stored(bundle.extra.get(PRECISION_KEY), precision, bundle.path)
    device = select_device(device)
    check_device(precision, device)
    keep_libraries_offline_and_quiet()
    if device != "cpu":
        settle()
    check_shapes(precision, device, linears(read_config(bundle)))
    return device


def load_model(bundle: Bundle, precision: Precision, device: str, smaller: str = _SMALLER) -> tuple[Any, str]:
    """The bundle's LlamaForCausalLM in a precision, and its device. Raises what `Backbone.load` raises.

    smaller: what to do where it does not fit the device's memory.
    """
    device = check_loadable(bundle, precision, device)
    return _read_model(bundle, precision, device, smaller), device


def allowed_ids(bundle: Bundle, decode: Decode) -> range | None:
    """Ids that an answer may hold, None for the whole vocabulary."""
    spec = bundle.spec
    return action_ids(spec.action_vocab_size, spec.action_bins) if decode == "action-only" else None


def read_config(bundle: Bundle) -> Any:
    """LlamaConfig of the folder; read here because transformers takes a missing file for a model of default sizes.

    Raises BundleError when it is none, or not as wide as the spec says.
    """
    config = _parse_config(bundle.path)
    if config.hidden_size != bundle.spec.embed_dim:
        raise BundleError(
            f"{bundle.path}: the backbone is {config.hidden_size} wide, the spec says {bundle.spec.embed_dim}; "
            "split again"
        )
    return config


def _parse_config(path: Path) -> Any:
    from transformers import LlamaConfig

    try:
        fields = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if fields["architectures"] != ["LlamaForCausalLM"]:
            raise BundleError(f"{path} holds a {fields['architectures']}, expected LlamaForCausalLM; split again")
        return LlamaConfig.from_dict(fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} holds no LlamaForCausalLM: config.json: {_line(error)}; split again") from error


def _read_model(bundle: Bundle, precision: Precision, device: str, smaller: str = _SMALLER) -> Any:
    """The model on its device. A weight that the folder lacks is an error: transformers would fill it with noise."""
    from transformers import LlamaForCausalLM

    # Weights that `split` quantised carry their own configuration, in config.json.
    quantization = None if PRECISION_KEY in bundle.extra else quantization_config(precision)
    options: dict[str, Any] = {"dtype": NUMERICS[precision].dtype, "attn_implementation": "sdpa"}
    if quantization is not None:
        options["quantization_config"] = quantization
    if device != "cpu":
        options["device_map"] = {"": device}
    try:
        with fitting(precision, device, smaller):
            model, info = LlamaForCausalLM.from_pretrained(
                bundle.path, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
            )
    except ImportError as error:
        raise ConfigError(f"precision {precision} needs a library that is not here: {_line(error)}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise BundleError(f"{bundle.path} holds no LlamaForCausalLM: {_line(error)}; split again") from error
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found := info.get(fault):
            names = ", ".join(sorted(str(name) for name in found)[:3])
            raise BundleError(f"{bundle.path}: {fault.replace('_', ' ')} in the weights: {names}; split again")
    if (kind := NUMERICS[precision].convert) is not None:
        with fitting(precision, device, smaller):
            convert(model, kind)
    return model.eval()


@contextmanager
def fitting(what: str, device: str, remedy: str) -> Iterator[None]:
    """Raises ConfigError where the device's memory is too small."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not out_of_memory(error):
            raise
        raise ConfigError(f"{what} does not fit {device} ({_line(error)}); {remedy}") from error


def linears(config: Any) -> dict[str, tuple[int, int]]:
    """(in_features, out_features) of the kinds of linear layer that are quantised."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, mlp),
        "down_proj": (mlp, hidden),
    }


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
