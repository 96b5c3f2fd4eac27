"""Train the policy: one command, which can be stopped and goes on where it was.

    python -m benchmarks.world.train FRAMES OUT [--minutes 60] [--language-minutes 40] [--device cpu] [--batch 32]

FRAMES is the folder that benchmarks.world.generate fills, and may still be filling. At set moments the policy's own
roll-outs, labelled by the expert, are added to it by another process (DAgger). After that the towers stay as they are
and the language model is trained alone (benchmarks.world.language). OUT gets latest.pt, log.csv, language.csv, what the
towers saw (131 kB a picture) and the tokenizer's files; benchmarks.world.export makes a checkpoint of it.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.world.batches import Frames, token_ids
from benchmarks.world.language import language_begun, train_language
from benchmarks.world.losses import Losses, action_loss, auxiliary_loss, motion_error
from benchmarks.world.model import SIZES, Policy
from benchmarks.world.shards import TASK_NAMES
from benchmarks.world.vocabulary import prompt_ids, write_words
from splitvla_edge.robots.metaworld.tasks import TASKS

_PEAK_RATE, _WARM_UP_STEPS, _LAST_RATE, _WEIGHT_DECAY = 1.5e-3, 200, 0.02, 0.02
_SMOOTHING, _SMOOTH_EVERY = 0.98, 5  # the weights that are exported are a running mean, moved every five steps
_AUXILIARY = 0.5
_KEEP, _ONWARD, _ALL = 64, 44, 256
_EVERY_WHOLE, _WHOLE_FROM = 8, 0.85  # one batch in eight sees all patches, and all batches do in the end
_DAGGER_FROM = (0.3, 0.45, 0.6)  # of the training time
_SAVE_EVERY, _NOISE_BINS = 100, 6.0
_SEEING_FIRST = 0.22  # of the training time goes to seeing alone, which costs less than half of a whole step


@dataclass(slots=True)
class Trainer:
    """Mutable state: weights, their running mean, optimiser, and how long it has trained."""

    policy: Policy
    smooth: dict[str, torch.Tensor]
    optimiser: torch.optim.Optimizer
    step: int = 0
    elapsed_s: float = 0.0
    rounds: int = 0

    @classmethod
    def start(cls, out: Path, device: str) -> Trainer:
        """From OUT/latest.pt where it is there."""
        torch.manual_seed(0)
        policy = Policy(SIZES).to(device)
        decay = [p for p in policy.parameters() if p.ndim > 1]
        rest = [p for p in policy.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": _WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=_PEAK_RATE, betas=(0.9, 0.98), fused=True)
        trainer = cls(policy, {}, optimiser)
        if (out / "latest.pt").is_file():
            saved = torch.load(out / "latest.pt", map_location=device, weights_only=True)
            policy.load_state_dict(saved["policy"])
            optimiser.load_state_dict(saved["optimiser"])
            trainer.step, trainer.elapsed_s, trainer.rounds = saved["step"], saved["elapsed_s"], saved["rounds"]
            trainer.smooth = saved["smooth"]
        else:
            trainer.smooth = {name: value.clone() for name, value in policy.state_dict().items()}
        return trainer

    def save(self, out: Path) -> None:
        part = out / "latest.part"
        torch.save(
            {
                "policy": self.policy.state_dict(),
                "smooth": self.smooth,
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "elapsed_s": self.elapsed_s,
                "rounds": self.rounds,
            },
            part,
        )
        part.replace(out / "latest.pt")

    def learn(self, frames: Frames, prompts: list[list[int]], size: int, done: float, device: str) -> Losses:
        """One batch. done: how much of the training time is over, 0 to 1."""
        whole = done >= _WHOLE_FROM or self.step % _EVERY_WHOLE == 0
        if whole:
            batch = frames.batch(size // 3, _ALL, _ALL).to(device)
        else:
            batch = frames.batch(size, _KEEP, _ONWARD).to(device)
        rate = _PEAK_RATE * min(1.0, (self.step + 1) / _WARM_UP_STEPS)
        rate *= _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # Half of the time the tokens already said are a little off, as they will be when the policy acts.
        noise = _NOISE_BINS * torch.randn(batch.bins.shape) * (torch.rand(len(batch.bins), 1) < 0.5)
        ids, lengths = token_ids(prompts, batch.tasks, batch.bins, SIZES, noise.to(device))
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            patches = self.policy.patches(batch.images, batch.keep, None if whole else batch.onward)
            guess = self.policy.auxiliary(patches).float()
            auxiliary, place_m = auxiliary_loss(guess, batch)
            loss, action, off = _AUXILIARY * auxiliary, 0.0, 0.0
            if done >= _SEEING_FIRST:
                seen = batch.keep.gather(1, batch.onward)
                logits = self.policy(patches, seen, ids[:, None], lengths[:, None])[0][:, 0].float()
                told = action_loss(logits, batch.normalised, SIZES)
                loss, action = loss + told, float(told.detach())
                off = motion_error(logits, batch.bins, SIZES)
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        if self.step % _SMOOTH_EVERY == 0:
            weight = min(_SMOOTHING, 1 - 1 / (1 + self.step / 50))
            with torch.no_grad():
                for name, value in self.policy.state_dict().items():
                    self.smooth[name].lerp_(value, 1 - weight)
        return Losses(action, float(auxiliary.detach()), off, place_m)


def train(folder: Path, out: Path, prompts: list[list[int]], minutes: float, device: str, size: int) -> None:
    """Until `minutes` of training are over, those of earlier runs included."""
    trainer = Trainer.start(out, device)
    frames = Frames(folder, seed=trainer.step)
    helper: subprocess.Popen[bytes] | None = None
    mean: Losses | None = None
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, (out / "log.csv").open("a", encoding="utf-8") as log:
        bar = progress.add_task("training", total=60 * minutes, completed=int(trainer.elapsed_s))
        while trainer.elapsed_s < 60 * minutes:
            began = time.monotonic()
            done = trainer.elapsed_s / (60 * minutes)
            losses = trainer.learn(frames, prompts, size, done, device)
            mean = losses if mean is None else mean.blended(losses)
            if trainer.step % _SAVE_EVERY == 0:
                trainer.save(out)
                frames.refresh()
                log.write(f"{trainer.step},{trainer.elapsed_s:.0f},{len(frames)},{mean.text(',')}\n")
                log.flush()
                if trainer.rounds < len(_DAGGER_FROM) and done >= _DAGGER_FROM[trainer.rounds] and not _busy(helper):
                    helper = _dagger(folder, out, trainer.rounds)
                    trainer.rounds += 1
            trainer.elapsed_s += time.monotonic() - began
            progress.update(
                bar,
                completed=trainer.elapsed_s,
                description=f"step {trainer.step}, {len(frames)} frames, {mean.text(' ')}",
            )
    trainer.save(out)
    if helper is not None:
        helper.wait()


def _busy(process: subprocess.Popen[bytes] | None) -> bool:
    return process is not None and process.poll() is None


def _dagger(folder: Path, out: Path, number: int) -> subprocess.Popen[bytes]:
    """Another process lets the policy of now act, and adds what it meets to the frames."""
    command = [sys.executable, "-m", "benchmarks.world.dagger", str(out), str(folder), "--round", str(number)]
    with (out / f"dagger{number}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.world.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("frames", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0, help="of everything together")
    parser.add_argument("--language-minutes", type=float, default=40.0, help="of the language model alone, after that")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--threads", type=int, default=1, help="of a processor; more are no faster on widths like these"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    frames, out = arguments.frames, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    write_words(out, SIZES)
    prompts = [prompt_ids(out, TASKS[name].instruction) for name in TASK_NAMES]
    if not language_begun(out):
        train(frames, out, prompts, arguments.minutes, arguments.device, arguments.batch)
    if arguments.language_minutes:
        train_language(frames, out, arguments.language_minutes, arguments.batch)


if __name__ == "__main__":
    main()
