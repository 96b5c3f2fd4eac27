"""transformers' own `generate()` on the backbone: what our engine is compared with, in tokens and in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from splitvla_shared.nouns import FloatArray


@torch.inference_mode()
def generate(
    model: Any,
    prompt_ids: Sequence[int],
    patches: FloatArray,
    count: int,
    cache: str | None = None,
    each: Callable[[], None] | None = None,
) -> list[int]:
    """`count` greedy ids behind BOS, patches (n, hidden) and the rest of the prompt; an early </s> is an id like any.

    model: a LlamaForCausalLM. cache: None for transformers' default, or "static". each: called behind every new id.
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    text = model.model.embed_tokens(torch.tensor([list(prompt_ids)], device=model.device))
    image = torch.from_numpy(patches).to(model.device, model.dtype)[None]
    embeds = torch.cat((text[:, :1], image, text[:, 1:]), dim=1)
    settings = GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0, cache_implementation=cache)
    mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=model.device)
    criteria = StoppingCriteriaList() if each is None else StoppingCriteriaList([_Never(each)])
    ids = model.generate(
        inputs_embeds=embeds, attention_mask=mask, generation_config=settings, stopping_criteria=criteria
    )
    found: list[int] = ids[0].tolist()
    return found


class _Never:
    """A stopping criterion that never stops."""

    def __init__(self, each: Callable[[], None]) -> None:
        self._each = each

    def __call__(self, ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        self._each()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
