"""Write the golden probes of both bundles: fixed inputs and what the unsplit model in float32 answers to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from splitvla_cloud.golden import INSTRUCTION, CloudProbe
from splitvla_cloud.prompt import Prompt
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.split.progress import Progress, counter
from splitvla_cloud.split.streamed_llama import StreamedLlama
from splitvla_cloud.split.streamed_vit import streamed_edge_model
from splitvla_shared.actions import action_ids
from splitvla_shared.nouns import FloatArray
from splitvla_shared.probe import EdgeProbe, probe_image, probe_patches, probe_said, probe_scale
from splitvla_shared.spec import ModelSpec


def write_probes(source: Checkpoint, spec: ModelSpec, edge: Path, cloud: Path, report: Progress) -> None:
    """Write probe.json into both folders; `cloud` holds the tokenizer already.

    The answers come from the source, not from the files that they will judge. Each tensor is read once, and no more
    than a few are in memory: the language model's answer is teacher-forced, so that no token waits for the one before.
    """
    tensors = (*source.vision_tensors.values(), *source.language_tensors.values())
    advance = counter(report, "golden probe", sum(entry.size for entry in tensors))
    patches = _embed(source, advance)
    EdgeProbe.of(patches).save(edge)
    _answer(source, spec, Prompt.load(cloud, spec), probe_scale(patches), advance).save(cloud)


@torch.inference_mode()
def _embed(source: Checkpoint, advance: Callable[[int], None]) -> FloatArray:
    model = streamed_edge_model(source.vision, source.vision_tensors, advance)
    image = torch.from_numpy(probe_image(source.vision.image_size))
    patches: FloatArray = model(image[None])[0].numpy()
    return patches


@torch.inference_mode()
def _answer(
    source: Checkpoint, spec: ModelSpec, prompt: Prompt, scale: float, advance: Callable[[int], None]
) -> CloudProbe:
    model = StreamedLlama(source.language, source.language_tensors, advance)
    prompt_ids = prompt.ids(INSTRUCTION)
    actions = action_ids(spec.action_vocab_size, spec.action_bins)
    said = probe_said(actions, spec.chunk_length * spec.max_action_dims)
    text = model.embed([*prompt_ids, *said[:-1]])
    image = torch.from_numpy(probe_patches(spec.patches, spec.embed_dim, scale))
    # BOS, patches, the rest of the prompt, what was said.
    logits = model.logits(torch.cat((text[:1], image, text[1:])), len(said))
    return CloudProbe.of(prompt_ids, scale, said, actions, logits.numpy())
