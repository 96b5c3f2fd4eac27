"""The second stage of training: the language model alone, on pictures whose patches were computed once.

The towers and the projector stay as they are, so a step costs a fraction of a whole one. Four things make the words
count, of which nothing is exported but the weights that they led to:

- the sentences that one picture of balls could come with are learned in the same batch;
- naming: a head of the first layer is shown where a word's thing is, the patches that hold it;
- hearing: a head of the second layer is shown which words those are, wherever an answer is to be given;
- meaning: a head of its own must tell, from what the last layer is given where the sentence ends, how far the fingers
  are from what the sentence is about.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from benchmarks.world.actor import load_policy
from benchmarks.world.batches import token_ids
from benchmarks.world.losses import Losses, action_loss, motion_error
from benchmarks.world.model import ACTION_DIMS, SIZES, Policy
from benchmarks.world.pictures import ABOUT, MEANT, PATCHES, Asked, Pictures
from benchmarks.world.shards import TASK_NAMES
from benchmarks.world.vocabulary import prompt_ids, word_place
from splitvla_edge.robots.metaworld.tasks import TASKS

_PEAK_RATE, _WARM_UP_STEPS, _LAST_RATE, _WEIGHT_DECAY = 1e-3, 100, 0.02, 0.02
_SMOOTHING = 0.995  # the weights that are exported are a running mean
_MEANING, _NAMING, _UNIT_M = 0.5, 0.2, 0.05
_KEEP, _WIDEST_KEEP = 40, 96
_EVERY_WHOLE, _WHOLE_FROM = 8, 0.85  # one batch in eight has all patches, and all batches have in the end
_SAVE_EVERY, _NOISE_BINS = 100, 6.0
_FIRST_PICTURES = 2000  # that have been looked at before training begins


@dataclass(slots=True)
class LanguageTrainer:
    """Mutable state: the policy, of which the language model moves, its running mean, the head, and the optimiser."""

    policy: Policy
    head: nn.Linear
    smooth: dict[str, Tensor]
    optimiser: torch.optim.Optimizer
    step: int = 0
    elapsed_s: float = 0.0

    @classmethod
    def start(cls, out: Path) -> LanguageTrainer:
        """From OUT/latest.pt: where this stage was, or at the end of the first one."""
        torch.manual_seed(1)
        policy, head = load_policy(out, SIZES), nn.Linear(SIZES.llm_dim, 3 * MEANT)
        moving = [*policy.language_model.parameters(), *head.parameters()]
        groups = [
            {"params": [p for p in moving if p.ndim > 1], "weight_decay": _WEIGHT_DECAY},
            {"params": [p for p in moving if p.ndim <= 1], "weight_decay": 0.0},
        ]
        trainer = cls(policy, head, {}, torch.optim.AdamW(groups, lr=_PEAK_RATE, betas=(0.9, 0.98), fused=True))
        trainer.smooth = {name: value.clone() for name, value in policy.state_dict().items()}
        saved = torch.load(out / "latest.pt", map_location="cpu", weights_only=True).get("language")
        if saved is not None:
            policy.language_model.load_state_dict(saved["weights"])
            head.load_state_dict(saved["head"])
            trainer.optimiser.load_state_dict(saved["optimiser"])
            trainer.step, trainer.elapsed_s = saved["step"], saved["elapsed_s"]
        return trainer

    def save(self, out: Path) -> None:
        """The first stage's numbers stay in the file."""
        saved = torch.load(out / "latest.pt", map_location="cpu", weights_only=True)
        saved["smooth"] = self.smooth
        saved["language"] = {
            "weights": self.policy.language_model.state_dict(),
            "head": self.head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        torch.save(saved, out / "latest.part")
        (out / "latest.part").replace(out / "latest.pt")

    def learn(self, pictures: Pictures, words: Words, size: int, done: float) -> Losses:
        """One batch: a quarter of it pictures of balls, three sentences each. done: 0 to 1."""
        whole = done >= _WHOLE_FROM or self.step % _EVERY_WHOLE == 0
        patches = PATCHES if whole else int(torch.randint(_KEEP, _WIDEST_KEEP + 1, ()))
        size = size // 2 if whole else size
        rate = _PEAK_RATE * min(1.0, (self.step + 1) / _WARM_UP_STEPS)
        rate *= _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        kinds = (pictures.balls(size // 4, patches), pictures.others(size - size // 4, patches))
        first, second = (self._told(asked, words) for asked in kinds)
        torch.nn.utils.clip_grad_norm_(self.policy.language_model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        with torch.no_grad():
            for name, value in self.policy.language_model.state_dict(prefix="language_model.").items():
                self.smooth[name].lerp_(value, 1 - min(_SMOOTHING, 1 - 1 / (1 + self.step / 10)))
        return first.blended(second, 0.5)

    def _told(self, asked: Asked, words: Words) -> Losses:
        """Adds up gradients of half of the loss. Returned as Losses: `auxiliary` is naming and hearing, `place_m` how
        far off meaning is.
        """
        tasks, bins = asked.tasks.flatten(), asked.bins.flatten(0, 1)
        noise = _NOISE_BINS * torch.randn(bins.shape) * (torch.rand(len(bins), 1) < 0.5)
        ids, lengths = token_ids(words.prompts, tasks, bins, SIZES, noise)
        ids, lengths = ids.reshape(*asked.tasks.shape, -1), lengths.reshape(asked.tasks.shape)
        logits, thought = self.policy(asked.patches, asked.keep, ids, lengths)
        action = action_loss(logits.flatten(0, 1), asked.normalised.flatten(0, 1), SIZES)
        meaning, off_m = meaning_loss(self.head(thought.ends()), asked.meant)
        named = ids.shape[-1] - lengths[:, :, None] + words.things[asked.tasks]
        looks, _ = self.policy.attends(thought, 0, named)
        answers = torch.arange(-ACTION_DIMS, 0) + ids.shape[-1]
        _, hears = self.policy.attends(thought, 1, answers.expand(*ids.shape[:2], -1))
        naming = naming_loss(looks, asked.there) + hearing_loss(hears, named)
        torch.autograd.backward(0.5 * (action + _MEANING * meaning + _NAMING * naming))
        off = motion_error(logits.detach().flatten(0, 1), bins, SIZES)
        return Losses(float(action.detach()), float(naming.detach()), off, off_m)


def meaning_loss(guess: Tensor, meant: Tensor) -> tuple[Tensor, float]:
    """guess: (B, P, MEANT * 3). meant: (B, P, MEANT, 3) in metres. The loss and the mean distance in metres."""
    there = meant.isfinite().all(-1)
    apart = guess.reshape(meant.shape)[there] - meant[there] / _UNIT_M
    off_m = float(apart.detach().norm(dim=-1).mean()) * _UNIT_M
    return F.smooth_l1_loss(apart, torch.zeros_like(apart), beta=0.5), off_m


def naming_loss(looks: Tensor, there: Tensor) -> Tensor:
    """looks: (B, P, MEANT, J), shares of a head's attention. there: bool, the same shape, where it should go."""
    named = there.any(-1)
    return -(looks * there).sum(-1)[named].clamp(min=1e-6).log().mean()


def hearing_loss(hears: Tensor, named: Tensor) -> Tensor:
    """hears: (B, P, n, W), shares of a head's attention. named: (B, P, MEANT), the words that should share it."""
    shares = hears.gather(3, named[:, :, None].expand(*hears.shape[:3], -1))
    return -shares.clamp(min=1e-6).log().mean()


@dataclass(frozen=True, slots=True)
class Words:
    """prompts: the ids of each task's sentence. things: (tasks, MEANT), where in it the things of ABOUT are named."""

    prompts: list[list[int]]
    things: Tensor

    @classmethod
    def of(cls, folder: Path) -> Words:
        """folder: where the tokenizer's files are."""
        told = {name: TASKS[name].instruction for name in TASK_NAMES}
        places = [[word_place(folder, text, word) for word in ABOUT[name]] for name, text in told.items()]
        things = torch.tensor([(row * MEANT)[:MEANT] for row in places])
        return cls([prompt_ids(folder, text) for text in told.values()], things)


def language_begun(out: Path) -> bool:
    """From then on the towers stay as they are, whatever else was asked for."""
    return (out / "latest.pt").is_file() and "language" in torch.load(out / "latest.pt", weights_only=True)


def train_language(folder: Path, out: Path, minutes: float, size: int) -> None:
    """Until `minutes` of this stage are over, on the processor. Another process looks at the frames meanwhile."""
    trainer, words = LanguageTrainer.start(out), Words.of(out)
    pictures = Pictures(folder, out, seed=trainer.step)
    mean: Losses | None = None
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with looking(folder, out) as looker, Progress(*columns) as progress, (out / "language.csv").open("a") as table:
        while len(pictures) < _FIRST_PICTURES and looker.poll() is None:
            time.sleep(1.0)
            pictures.refresh()
        bar = progress.add_task("language", total=60 * minutes, completed=int(trainer.elapsed_s))
        while trainer.elapsed_s < 60 * minutes:
            began = time.monotonic()
            losses = trainer.learn(pictures, words, size, trainer.elapsed_s / (60 * minutes))
            mean = losses if mean is None else mean.blended(losses)
            if trainer.step % _SAVE_EVERY == 0:
                trainer.save(out)
                pictures.refresh()
                table.write(f"{trainer.step},{trainer.elapsed_s:.0f},{len(pictures)},{mean.text(',')}\n")
                table.flush()
            trainer.elapsed_s += time.monotonic() - began
            said = f"step {trainer.step}, {len(pictures)} pictures, {mean.text(' ')}"
            progress.update(bar, completed=trainer.elapsed_s, description=said)
    trainer.save(out)


@contextlib.contextmanager
def looking(folder: Path, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """benchmarks.world.seen beside whatever is done meanwhile, and no longer than that."""
    command = [sys.executable, "-m", "benchmarks.world.seen", str(out), str(folder)]
    with (out / "seen.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
