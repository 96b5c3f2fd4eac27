"""The trained policy acting on several pictures at once, unsplit: what training steers by, and the success table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.checkpoint.language import llama_config
from benchmarks.checkpoint.sizes import Sizes
from benchmarks.world.export import WEIGHTS, from_checkpoint
from benchmarks.world.model import ACTION_DIMS, SIZES, Policy
from benchmarks.world.vocabulary import prompt_ids, unnormalised
from splitvla_shared.errors import CheckpointError
from splitvla_shared.nouns import ActionArray, Image

Act = Callable[[Sequence[Image], Sequence[str]], ActionArray]


def backbone(policy: Policy) -> LlamaForCausalLM:
    """The same weights in transformers' own Llama."""
    model = LlamaForCausalLM(llama_config(policy.sizes)).eval()
    model.load_state_dict(policy.language_model.state_dict())
    return model


class Actor:
    """Greedy, as OpenVLA decodes: the best of the whole vocabulary, seven times. Stateless between calls."""

    def __init__(self, policy: Policy, folder: Path) -> None:
        """folder: where the tokenizer's files are."""
        self._policy, self._folder = policy.eval(), folder
        self._backbone = backbone(policy)
        self._prompts: dict[str, list[int]] = {}

    @classmethod
    def load(cls, folder: Path) -> Actor:
        """From the folder of a training run or of an exported checkpoint."""
        return cls(load_policy(folder), folder)

    @torch.inference_mode()
    def tokens(self, images: Sequence[Image], instructions: Sequence[str]) -> Tensor:
        """(B, 7) token ids."""
        for text in instructions:
            self._prompts.setdefault(text, prompt_ids(self._folder, text))
        prompts = [self._prompts[text] for text in instructions]
        wide = max(map(len, prompts))
        ids = torch.tensor([[0] * (wide - len(prompt)) + prompt for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        everything = torch.arange(self._policy.sizes.patches).expand(len(images), -1)
        patches = self._policy.patches(torch.from_numpy(np.stack(images)), everything)
        x, positions, real = self._policy.sequence(patches, everything, ids[:, None], lengths[:, None])
        mask, said, cache = real.long(), [], None
        for _ in range(ACTION_DIMS):
            out = self._backbone(
                inputs_embeds=x, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            best = out.logits[:, -1].argmax(-1, keepdim=True)
            said.append(best)
            x, positions = self._policy.language_model.embed(best), positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(best)], dim=1)
        return torch.cat(said, dim=1)

    def __call__(self, images: Sequence[Image], instructions: Sequence[str]) -> ActionArray:
        """(B, 7) in the robot's units."""
        return unnormalised(self.tokens(images, instructions).numpy(), self._policy.sizes)


def load_policy(folder: Path, sizes: Sizes = SIZES) -> Policy:
    """Of an exported checkpoint, or of a training run: the running mean of its weights, rounded as `export` does."""
    policy = Policy(sizes)
    if (folder / WEIGHTS).is_file():
        weights = from_checkpoint(load_file(folder / WEIGHTS))
    else:
        weights = torch.load(folder / "latest.pt", map_location="cpu", weights_only=True)["smooth"]
    kept = {name: value.to(torch.bfloat16).float() for name, value in weights.items() if name in policy.state_dict()}
    missing = policy.load_state_dict(kept, strict=False).missing_keys
    if any(not name.startswith("auxiliary.") for name in missing):
        raise CheckpointError(f"{folder}: {len(missing)} tensors are missing, {missing[0]} the first; export it again")
    return policy
