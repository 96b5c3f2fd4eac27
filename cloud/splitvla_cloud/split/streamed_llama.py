"""One forward pass of a Llama in float32 whose weights pass through memory one tensor at a time.

Source: modeling_llama.py of transformers (RMSNorm, rotary halves, SwiGLU, causal attention); a test holds both equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from splitvla_cloud.split.geometry import LanguageGeometry
from splitvla_cloud.split.tensor_file import StoredTensor

_HEAD_ROWS = 4096  # rows of lm_head that are float32 at a time


@dataclass(frozen=True, slots=True)
class StreamedLlama:
    """The language model of a checkpoint, named as LlamaForCausalLM names its tensors. Keeps no weight in memory.

    `advance` gets the bytes of each tensor that was read; `embed` and `logits` together read every tensor once.
    """

    language: LanguageGeometry
    tensors: Mapping[str, StoredTensor]
    advance: Callable[[int], None]

    @torch.inference_mode()
    def embed(self, ids: list[int]) -> Tensor:
        """Float32 (len(ids), hidden)."""
        return self._read("model.embed_tokens.weight")[ids].float()

    @torch.inference_mode()
    def logits(self, embeds: Tensor, count: int) -> Tensor:
        """embeds (length, hidden) to the logits of the last `count` positions, (count, vocabulary); float32."""
        x = embeds
        rotary = _rotary(self.language, len(embeds))
        for index in range(self.language.num_hidden_layers):
            layer = f"model.layers.{index}."
            x = x + self._attention(f"{layer}self_attn.", self._norm(f"{layer}input_layernorm", x), rotary)
            x = x + self._feed_forward(f"{layer}mlp.", self._norm(f"{layer}post_attention_layernorm", x))
        last = self._norm("model.norm", x[-count:])
        head = self._read("lm_head.weight")
        return torch.cat([last @ rows.float().T for rows in torch.split(head, _HEAD_ROWS)], dim=-1)

    def _attention(self, name: str, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        language = self.language
        heads, keys = language.num_attention_heads, language.num_key_value_heads

        def project(letter: str, count: int) -> Tensor:
            return self._linear(f"{name}{letter}_proj", x).view(len(x), count, language.head_dim).transpose(0, 1)

        q, k, v = _rotated(project("q", heads), rotary), _rotated(project("k", keys), rotary), project("v", keys)
        k, v = (part.repeat_interleave(heads // keys, dim=0) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self._linear(f"{name}o_proj", mixed.transpose(0, 1).reshape(len(x), -1))

    def _feed_forward(self, name: str, x: Tensor) -> Tensor:
        gated = F.silu(self._linear(f"{name}gate_proj", x)) * self._linear(f"{name}up_proj", x)
        return self._linear(f"{name}down_proj", gated)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight = self._read(f"{name}.weight").float()
        return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.language.rms_norm_eps))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = self._read(f"{name}.bias").float() if f"{name}.bias" in self.tensors else None
        return F.linear(x, self._read(f"{name}.weight").float(), bias)

    def _read(self, name: str) -> Tensor:
        entry = self.tensors[name]
        tensor = entry.read()
        self.advance(entry.size)
        return tensor


def _rotary(language: LanguageGeometry, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (length, head_dim) each."""
    steps = torch.arange(0, language.head_dim, 2, dtype=torch.float32) / language.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), 1.0 / language.rope_theta**steps)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos(), both.sin()


def _rotated(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Position into (heads, length, head_dim): the second half of each head, negated, turns with the first."""
    first, second = x.chunk(2, dim=-1)
    return x * rotary[0] + torch.cat((-second, first), dim=-1) * rotary[1]
