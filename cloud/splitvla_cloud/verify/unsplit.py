"""The unsplit model, from the checkpoint's own files: what the bundles are held against.

Rules of this file: nothing of a bundle is read, and nothing of the robot's side is imported: pixels, tokens and actions
are made anew from the sources named below, so that an error in the product is not repeated here.
Sources: processing_prismatic.py and modeling_prismatic.py of the OpenVLA checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as PilImage
from PIL import ImageOps

from splitvla_cloud.split.checkpoint import TOKENIZER, Checkpoint
from splitvla_cloud.split.encoder_export import load_edge_model
from splitvla_cloud.split.geometry import TowerGeometry, VisionGeometry
from splitvla_cloud.split.vit import EdgeModel
from splitvla_shared.nouns import ActionArray, FloatArray, Image
from splitvla_shared.spec import INSTRUCTION_SLOT, Resize


def square(image: Image, vision: VisionGeometry) -> Image:
    """PrismaticImageProcessor's resize or letterbox, in Pillow: uint8 (S, S, 3)."""
    size, picture = vision.image_size, PilImage.fromarray(image)
    if picture.size == (size, size):
        return image
    if vision.resize is Resize.NAIVE:
        return np.asarray(picture.resize((size, size), PilImage.Resampling.BICUBIC))
    width, height = picture.size
    side = max(width, height)
    across, down = int((side - width) / 2), int((side - height) / 2)
    picture = ImageOps.expand(picture, (across, down, across, down), vision.letterbox_fill or 0)
    width, height = picture.size
    short = min(width, height)
    picture = picture.resize((int(size * width / short), int(size * height / short)), PilImage.Resampling.BICUBIC)
    left, top = round((picture.width - size) / 2), round((picture.height - size) / 2)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def pixel_values(image: Image, tower: TowerGeometry) -> FloatArray:
    """torchvision's to_tensor and normalize: float32 (3, S, S)."""
    scaled = image.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (tower.mean, tower.std))
    pixels: FloatArray = (scaled - mean) / std
    return pixels


def prompt_ids(source: Checkpoint, instruction: str) -> tuple[int, ...]:
    """The ids of the checkpoint's tokenizer through transformers, with the suffix that predict_action appends."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(source.path / TOKENIZER))
    ids = tuple(tokenizer(source.prompt_template.replace(INSTRUCTION_SLOT, instruction.lower())).input_ids)
    return ids if ids[-1] == source.suffix_token_id else (*ids, source.suffix_token_id)


def actions(tokens: Sequence[int], source: Checkpoint, statistics: Mapping[str, Any]) -> ActionArray:
    """predict_action's numbers for one entry of norm_stats; tokens beyond its dimensions are left out."""
    action = statistics["action"]
    low, high = np.array(action["q01"]), np.array(action["q99"])
    mask = np.array(action.get("mask", [True] * len(low)))
    bins = np.linspace(-1, 1, source.action_bins)
    centers = (bins[:-1] + bins[1:]) / 2.0
    discrete = source.action_vocab_size - np.array(tokens[: len(low)])
    normalized = centers[np.clip(discrete - 1, a_min=0, a_max=centers.shape[0] - 1)]
    scaled: ActionArray = np.where(mask, 0.5 * (normalized + 1) * (high - low) + low, normalized)
    return scaled


@dataclass(frozen=True, slots=True)
class Seen:
    """One frame in the encoder, float32: each tower's features (patches, dim), and the projected embedding."""

    towers: tuple[FloatArray, ...]
    patches: FloatArray


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy tokens, and each position's margin over the second-best id and spread (std of its logits)."""

    tokens: tuple[int, ...]
    margins: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]


class UnsplitEncoder:
    """Towers and projector in `dtype` on `device`; pixels are normalised in float32, as by the reference."""

    def __init__(self, source: Checkpoint, dtype: torch.dtype, device: str = "cpu") -> None:
        self._model: EdgeModel = load_edge_model(source.vision, source.vision_tensors)
        self._model.vision_backbone.to(device, dtype)
        self._model.projector.to(device, dtype)
        self._towers, self._dtype, self._device = source.vision.towers, dtype, device

    @torch.inference_mode()
    def see(self, image: Image) -> Seen:
        """image: uint8 (S, S, 3)."""
        towers = []
        for name, tower in zip(self._model.names, self._towers, strict=True):
            pixels = torch.from_numpy(pixel_values(image, tower))[None].to(self._device, self._dtype)
            towers.append(self._model.vision_backbone.get_submodule(name)(pixels))
        patches = self._model.projector(torch.cat(towers, dim=-1))
        return Seen(tuple(part[0].float().cpu().numpy() for part in towers), patches[0].float().cpu().numpy())


class UnsplitBackbone:
    """The checkpoint's language model as transformers builds it, in `dtype` on `device`."""

    def __init__(self, source: Checkpoint, dtype: torch.dtype, device: str) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        fields = dataclasses.asdict(source.language) | {
            # An answer is to have its full length: an early end is compared like any other id.
            "eos_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": source.language.rope_theta},
            "tie_word_embeddings": False,
        }
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**fields, attn_implementation="sdpa"))
        state = {name: entry.read().to(device, dtype) for name, entry in source.language_tensors.items()}
        model.load_state_dict(state, strict=True, assign=True)
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config).to(device)
        self._model, self._dtype, self._device = model.eval(), dtype, device

    def tokens(self, prompt: Sequence[int], patches: FloatArray, count: int) -> tuple[int, ...]:
        """The ids of `answer`, at the price of `generate` alone."""
        return tuple(self._generate(prompt, patches, count).sequences[0].tolist())

    def answer(self, prompt: Sequence[int], patches: FloatArray, count: int) -> Answer:
        """transformers' own greedy `generate` after E[BOS], patches, E[rest of the prompt]."""
        said = self._generate(prompt, patches, count, output_logits=True)
        logits = torch.cat(said.logits).double().cpu().numpy()
        top = np.sort(logits, axis=-1)[:, -2:]
        return Answer(tuple(said.sequences[0].tolist()), top[:, 1] - top[:, 0], logits.std(axis=-1))

    @torch.inference_mode()
    def _generate(self, prompt: Sequence[int], patches: FloatArray, count: int, **asked: bool) -> Any:
        text = self._model.model.embed_tokens(torch.tensor([list(prompt)], device=self._device))
        image = torch.from_numpy(patches).to(self._device, self._dtype)[None]
        embeds = torch.cat((text[:, :1], image, text[:, 1:]), dim=1)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=self._device)
        return self._model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            **asked,
        )
