"""Greedy decoding with a key-value cache, and teacher-forced scoring, over a plain LlamaForCausalLM.

Rules of this file: the ids that may be picked are a range, the whole vocabulary in the reference; equal logits give the
lowest id, as there; only rows that are needed go through lm_head; one synchronisation with the device a token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from splitvla_shared.errors import EarlyStop, ServerFault

Decode = Literal["greedy", "action-only"]


@dataclass(frozen=True, slots=True)
class Decoded:
    """Ids and durations in milliseconds; prefill_ms ends with the first id."""

    ids: tuple[int, ...]
    prefill_ms: float
    decode_ms: float


@torch.inference_mode()
def greedy(model: Any, embeds: torch.Tensor, count: int, eos: frozenset[int], allowed: range) -> Decoded:
    """`count` greedy ids of the range `allowed` after embeds (1, length, hidden).

    Raises EarlyStop when an id of `eos` comes before the last one, ServerFault when a logit is not finite.
    """
    from transformers import DynamicCache

    started = time.perf_counter()
    cache = DynamicCache(config=model.config)
    step: dict[str, torch.Tensor] = {"inputs_embeds": embeds}
    ids: list[int] = []
    prefilled = started
    while True:
        hidden = model.model(**step, past_key_values=cache, use_cache=True).last_hidden_state
        ids.append(_pick(model.lm_head(hidden[:, -1]), len(ids), allowed))
        if len(ids) == 1:
            prefilled = time.perf_counter()
        if len(ids) == count:
            break
        if ids[-1] in eos:
            raise EarlyStop(
                f"the model ended its answer at position {len(ids)} of {count}; "
                "check that instruction and action statistics belong to this model"
            )
        step = {"input_ids": torch.tensor([[ids[-1]]], device=embeds.device)}
    return Decoded(tuple(ids), (prefilled - started) * 1000, (time.perf_counter() - prefilled) * 1000)


@torch.inference_mode()
def score(model: Any, embeds: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """Logits, float32 (len(ids), vocabulary), of the positions that predict `ids` when `ids` are what was said.

    One forward over the whole sequence: what judges a reduced precision, and what would verify a draft.
    """
    said = torch.tensor([list(ids[:-1])], dtype=torch.long, device=embeds.device)
    sequence = torch.cat((embeds, model.model.embed_tokens(said)), dim=1)
    hidden = model.model(inputs_embeds=sequence, use_cache=False).last_hidden_state
    logits: torch.Tensor = model.lm_head(hidden[0, embeds.shape[1] - 1 :]).float()
    return logits


def _pick(logits: torch.Tensor, position: int, allowed: range) -> int:
    """The lowest of the `allowed` ids with the largest logit among them; torch.argmax documents that order."""
    row = logits[0].float()
    best, finite = torch.stack((row[allowed.start : allowed.stop].argmax(), torch.isfinite(row).all().long())).tolist()
    if not finite:
        raise ServerFault(f"a logit at position {position + 1} is not finite: damaged weights or a GPU fault")
    return allowed[int(best)]
