"""What a model's answers make of an error in an embedding: by direction, and by patch; measured where both halves are.

What `split` writes looks no further than the first layer and takes all patches for alike. Here the whole backbone is
asked, on frames of the robot's own: the Fisher information of the answer about the embedding, E[g g^T] with
g the gradient of log p(token) for tokens drawn from what the model itself says. To second order an error e changes that
distribution by e^T E[g g^T] e / 2 (Kullback-Leibler). Source: Amari, "Natural gradient works efficiently in learning",
Neural Computation 10(2), 1998. One backward pass a draw, whatever the number of tokens: their gradients are
uncorrelated, because the expectation of each is zero.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from splitvla_cloud.backbone import TEXT_TOKENS, Backbone, check_loadable, fitting, load_model
from splitvla_cloud.halves import embedded, open_halves
from splitvla_cloud.prompt import Prompt
from splitvla_cloud.settings import PRECISION_KEY
from splitvla_cloud.split.progress import Progress, counter, silent
from splitvla_shared.codec.installed import rewritten
from splitvla_shared.codec.sensitivity import Sensitivity, sensitivity_files
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import FloatArray
from splitvla_shared.replaced import exchange

# Where the device's memory is too small: of the precisions that have gradients only one is smaller than another.
_SMALLER = {"fp32": "try --precision bf16", "bf16": "use a device with more memory, or --device cpu"}
_DRAWS = 4  # of an answer, for each frame and instruction


@dataclasses.dataclass(frozen=True, slots=True)
class SensitivityRequest:
    """bundles: the folder with edge/ and cloud/. frames: images of the robot's own. instructions: at least one."""

    bundles: Path
    frames: Path
    instructions: tuple[str, ...]
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"
    camera_transform: str = "none"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A frame with its answer. patches: float32 (patches, embed_dim)."""

    prompt_ids: Sequence[int]
    patches: FloatArray
    ids: Sequence[int]


def measure_sensitivity(request: SensitivityRequest, report: Progress = silent) -> Sensitivity:
    """Write it into the edge bundle, in the place of what `split` wrote; the fingerprint stays. Calibrate afterwards.

    Raises BundleError when the halves do not belong together, ObservationError for frames that can't be read,
    ConfigError for a device or precision that there is not or that has no gradients.
    """
    edge, cloud = open_halves(request.bundles)
    if stored := cloud.extra.get(PRECISION_KEY):
        raise ConfigError(f"{cloud.path} is stored as {stored}, which has no gradients; split without --precision")
    device = check_loadable(cloud, request.precision, request.device)
    embeddings = embedded(edge, request.frames, request.camera_transform, report)
    smaller = _SMALLER[request.precision]
    model, device = load_model(cloud, request.precision, device, smaller)
    prompt = Prompt.load(cloud.path, cloud.spec)
    dims = cloud.spec.chunk_length * cloud.spec.max_action_dims
    asked = [(prompt.ids(text), patches) for text in request.instructions for patches in embeddings]
    with fitting(f"a backward pass in {request.precision}", device, smaller):
        backbone = Backbone(model, request.precision, device, tokens=cloud.spec.patches + TEXT_TOKENS)
        answered = (Answered(ids, patches, backbone.full_answer(ids, patches, dims)) for ids, patches in asked)
        found = answer_sensitivity(model, answered, counter(report, "sensitivity", len(asked)))
    with rewritten(edge, edge.spec, edge.extra, sensitivity_files(found)) as whole:
        exchange(whole, edge.path)
    return found


def answer_sensitivity(
    model: Any, answered: Iterable[Answered], advance: Callable[[int], None] = lambda count: None, seed: int = 0
) -> Sensitivity:
    """model: a LlamaForCausalLM, whose parameters are frozen by this. The same again on the same machine."""
    model.requires_grad_(False)
    draws = torch.Generator(model.device).manual_seed(seed)
    directions: Any = np.float64(0)
    patches: Any = np.float64(0)
    for each in answered:
        for gradient in _gradients(model, each, draws):
            directions = directions + gradient.T @ gradient
            patches = patches + np.square(gradient).sum(axis=1)
        advance(1)
    return Sensitivity(np.asarray(directions, np.float32), _blurred(np.asarray(patches, np.float32)))


def _gradients(model: Any, answered: Answered, draws: torch.Generator) -> Iterator[FloatArray]:
    """Of log p(answer) at the patches, for answers that are drawn token by token: float32 (patches, embed_dim)."""
    words = model.get_input_embeddings()
    ids = torch.tensor([*answered.prompt_ids, *answered.ids[:-1]], device=model.device)
    patches = torch.from_numpy(answered.patches.copy()).to(model.device).requires_grad_(True)
    text = words(ids)
    sequence = torch.cat((text[:1], patches.to(text.dtype), text[1:]))[None]
    logits = model(inputs_embeds=sequence, use_cache=False, logits_to_keep=len(answered.ids)).logits[0]
    said = logits.float().log_softmax(-1)
    drawn = torch.multinomial(said.detach().exp(), _DRAWS, replacement=True, generator=draws)
    for draw in range(_DRAWS):
        total = said.gather(1, drawn[:, draw : draw + 1]).sum()
        (gradient,) = torch.autograd.grad(total, patches, retain_graph=draw < _DRAWS - 1)
        yield gradient.cpu().numpy()


def _blurred(patches: FloatArray) -> FloatArray:
    """Means of 3 x 3 neighbours: what was on one patch is on the next after a small movement."""
    side = math.isqrt(len(patches))
    if side * side != len(patches):
        return patches
    grid = np.pad(patches.reshape(side, side), 1, mode="edge")
    near = [grid[row : row + side, column : column + side] for row in range(3) for column in range(3)]
    return np.asarray(np.mean(near, axis=0), np.float32).reshape(-1)
