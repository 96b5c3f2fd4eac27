"""What training minimises: the expert's tokens, softened over neighbouring bins, and where things are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from benchmarks.checkpoint.sizes import ACTION_BINS, Sizes
from benchmarks.world.batches import Batch
from benchmarks.world.model import AUXILIARY_NUMBERS
from benchmarks.world.shards import LANDMARKS

_WEIGHTS = (1.0, 1.0, 1.0, 0.02, 0.02, 0.02, 0.5)  # the rotations never change
_SIGMA_BINS = 3.0
_UNIT_M = 0.05
_CENTRE = (0.0, 0.7, 0.12)
_FINGERS = LANDMARKS.index("fingers")


@dataclass(frozen=True, slots=True)
class Losses:
    """action, auxiliary: what is minimised. off: how far the answers are from the expert's motion, on an axis, 1 being
    the largest motion. place_m: how far off the landmarks are, relative to the fingers.
    """

    action: float
    auxiliary: float
    off: float
    place_m: float

    def blended(self, newer: Losses, weight: float = 0.02) -> Losses:
        """The running mean."""
        old, new = dataclasses.astuple(self), dataclasses.astuple(newer)
        return Losses(*(a + weight * (b - a) for a, b in zip(old, new, strict=True)))

    def text(self, between: str) -> str:
        return between.join(f"{value:.4f}" for value in dataclasses.astuple(self))


def action_loss(logits: Tensor, normalised: Tensor, sizes: Sizes) -> Tensor:
    """logits: (B, 7, vocab). normalised: (B, 7). Cross-entropy with a bell around the expert's number."""
    centre = (normalised[:, :, None] + 1.0) / 2.0 * (ACTION_BINS - 1) - 0.5
    distance = torch.arange(ACTION_BINS, device=logits.device) - centre
    soft = torch.softmax(-0.5 * (distance / _SIGMA_BINS) ** 2, dim=-1)
    first = sizes.action_vocab_size - ACTION_BINS
    said = F.log_softmax(logits, dim=-1)[:, :, first : first + ACTION_BINS].flip(-1)
    entropy = -(soft * said).sum(-1)
    return (entropy * torch.tensor(_WEIGHTS, device=logits.device)).sum(-1).mean() / sum(_WEIGHTS)


def motion_error(logits: Tensor, bins: Tensor, sizes: Sizes) -> float:
    first = sizes.action_vocab_size - ACTION_BINS
    said = logits[:, :3, first : first + ACTION_BINS].flip(-1).argmax(-1)
    return float((said - bins[:, :3]).abs().float().mean() / (ACTION_BINS / 2))


def auxiliary_loss(guess: Tensor, batch: Batch) -> tuple[Tensor, float]:
    """guess: (B, J, landmarks * 9), read off the projected patches. Returns the loss and the mean error in metres."""
    guess = guess.reshape(*guess.shape[:2], len(LANDMARKS), AUXILIARY_NUMBERS)
    here = batch.here
    found = F.binary_cross_entropy_with_logits(guess[..., 0], here.float())
    wanted = torch.cat(
        [
            batch.offsets,
            ((batch.places - batch.places[:, _FINGERS : _FINGERS + 1]) / _UNIT_M)[:, None].expand(*here.shape, 3),
            ((batch.places - torch.tensor(_CENTRE, device=guess.device)) / _UNIT_M)[:, None].expand(*here.shape, 3),
        ],
        dim=-1,
    )[here]
    told = guess[..., 1:][here]
    apart = (told - wanted).detach()
    place_m = float(apart[:, 2:5].norm(dim=-1).mean()) * _UNIT_M
    return 10.0 * found + F.smooth_l1_loss(told, wanted, beta=0.5), place_m
