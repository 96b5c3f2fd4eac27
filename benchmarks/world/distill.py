"""A local policy distilled from recorded answers: a small head over the patch embeddings, as an ONNX file.

    python -m benchmarks.world.distill OUT.onnx --recording DIR [--steps 2000]
    python -m benchmarks.world.distill OUT.onnx --checkpoint DIR --frames DIR [--steps 2000]

The first learns from what `splitvla-edge run --record-distill DIR` recorded, of any model; the second lets the trained
policy answer the training frames first. Files are held out whole, one in ten, so that no held-out frame has a neighbour
in training. What it prints is what the robot will measure: the share of answers of which every dimension that moves is
within 25 bins of the server's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from benchmarks.report import table
from benchmarks.world.answers import record_answers
from splitvla_cloud.split.encoder_export import OPSET, quiet_exporter
from splitvla_edge.local.agreement import bin_of
from splitvla_edge.local.graph import ACTIONS, INSTRUCTION, NORMALIZED, PATCHES, PREFIX, VERSION
from splitvla_edge.local.settings import LocalSettings
from splitvla_shared.errors import ConfigError
from splitvla_shared.recording import read_recording

_HELD_OUT = 10  # one file in so many
_BATCH, _RATE, _DECAY = 64, 2e-3, 0.01
_BINS = 256


@dataclass(frozen=True, slots=True)
class Frames:
    """patches: float16 (n, patches, dim). instruction: (n,). answers: normalised, float32 (n, length * dims)."""

    patches: npt.NDArray[np.float16]
    instruction: npt.NDArray[np.int64]
    answers: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.patches)


@dataclass(frozen=True, slots=True)
class Data:
    """All that a recording holds. shape: (length, dims) of an answer. moves: (dims,), whether what is said moves it."""

    fingerprint: str
    moves: npt.NDArray[np.bool_]
    instructions: tuple[str, ...]
    shape: tuple[int, int]
    train: Frames
    held_out: Frames


class Head(nn.Module):
    """Looks at the patches with a few questions of its own for each instruction, and answers from what it saw."""

    def __init__(self, patches: int, dim: int, instructions: int, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape, self.questions, width = shape, 8, 48
        self.norm = nn.LayerNorm(dim)
        self.key, self.value = nn.Linear(dim, width), nn.Linear(dim, width)
        self.key_place = nn.Parameter(0.1 * torch.randn(patches, width))
        self.value_place = nn.Parameter(0.1 * torch.randn(patches, width))
        self.question = nn.Parameter(0.3 * torch.randn(instructions, self.questions, width))
        self.words = nn.Parameter(0.3 * torch.randn(instructions, width))
        self.answer = nn.Sequential(
            nn.Linear((self.questions + 1) * width, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(),
            nn.Linear(256, shape[0] * shape[1]),
        )  # fmt: skip

    def forward(self, patches: Tensor, instruction: Tensor) -> Tensor:
        """float32 (B, patches, dim) and int64 (B) to (B, length, dims)."""
        x = self.norm(patches)
        keys, values = self.key(x) + self.key_place, self.value(x) + self.value_place
        looks = torch.softmax(self.question[instruction] @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5, dim=-1)
        seen = torch.cat([(looks @ values).flatten(1), self.words[instruction]], dim=1)
        out: Tensor = self.answer(seen)
        return (out if self.training else out.clamp(-1.0, 1.0)).reshape(-1, *self.shape)


def load(recording: Path) -> Data:
    """Raises ConfigError when the files are not of one model, or too few to hold one out."""
    files = list(read_recording(recording))
    if len({answers.fingerprint for answers in files}) > 1:
        raise ConfigError(f"{recording} holds answers of several models; distil one recording at a time")
    if len(files) < 2:
        raise ConfigError(f"{recording} holds one file; record more, one in {_HELD_OUT} is held out")
    known = tuple(dict.fromkeys(text for answers in files for text in answers.instructions))
    frames = [
        Frames(
            answers.patches,
            np.array([known.index(text) for text in answers.instructions], np.int64)[answers.instruction],
            answers.normalized.reshape(len(answers), -1),
        )
        for answers in files
    ]
    held_out = {number for number in range(len(frames)) if number % _HELD_OUT == _HELD_OUT - 1} or {len(frames) - 1}
    length, dims = files[0].normalized.shape[1:]
    return Data(
        files[0].fingerprint,
        ~files[0].still,
        known,
        (length, dims),
        _joined([each for number, each in enumerate(frames) if number not in held_out]),
        _joined([each for number, each in enumerate(frames) if number in held_out]),
    )


def _joined(frames: Sequence[Frames]) -> Frames:
    return Frames(
        np.concatenate([each.patches for each in frames]),
        np.concatenate([each.instruction for each in frames]),
        np.concatenate([each.answers for each in frames]),
    )


def train(data: Data, steps: int, seed: int) -> Head:
    """So many steps, with a learning rate that falls to nothing."""
    torch.manual_seed(seed)
    frames = data.train
    _, patches_a_frame, width = frames.patches.shape
    head = Head(patches_a_frame, width, len(data.instructions), data.shape)
    moves = torch.from_numpy(np.tile(data.moves, data.shape[0]))
    optimiser = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=_DECAY)
    draw = np.random.default_rng(seed)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * (1.0 - step / steps)
        some = draw.integers(0, len(frames), _BATCH)
        patches, instruction, wanted = _tensors(frames, some)
        said = head(patches, instruction).flatten(1)
        loss = F.smooth_l1_loss(said[:, moves], wanted[:, moves], beta=0.1)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 200 == 0:
            print(f"  step {step}: loss {float(loss.detach()):.4f}", flush=True)
    return head.eval()


def _tensors(frames: Frames, some: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    patches = torch.from_numpy(frames.patches[some].astype(np.float32))
    return patches, torch.from_numpy(frames.instruction[some]), torch.from_numpy(frames.answers[some])


@torch.inference_mode()
def agreement(head: Head, frames: Frames, data: Data, within: int) -> Mapping[str, tuple[int, int]]:
    """For each instruction: (answers that agree, answers), as splitvla_edge.local.agreement counts them."""
    dims = data.shape[1]
    found: dict[str, tuple[int, int]] = {}
    for index, text in enumerate(data.instructions):
        rows = np.flatnonzero(frames.instruction == index)
        agreed = 0
        for some in np.array_split(rows, max(1, len(rows) // _BATCH)):
            if len(some):
                patches, instruction, wanted = _tensors(frames, some)
                said = head(patches, instruction)[:, 0].numpy().astype(np.float64)
                apart = np.abs(bin_of(said, _BINS) - bin_of(wanted.numpy()[:, :dims].astype(np.float64), _BINS))
                agreed += int((apart[:, data.moves] <= within).all(axis=1).sum())
        found[text] = (agreed, len(rows))
    return found


def export(head: Head, data: Data, path: Path) -> None:
    """As `splitvla_edge.local.graph` wants it."""
    example = torch.zeros(1, *data.train.patches.shape[1:]), torch.zeros(1, dtype=torch.long)
    with quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            head, example, dynamo=True, opset_version=OPSET, input_names=[PATCHES, INSTRUCTION],
            output_names=[ACTIONS], verbose=False,
        )  # fmt: skip
    assert program is not None
    said = {"local": VERSION, "actions": NORMALIZED, "fingerprint": data.fingerprint}
    said["instructions"] = json.dumps(data.instructions)
    program.model.metadata_props.update({PREFIX + name: text for name, text in said.items()})
    program.save(str(path), external_data=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.world.distill", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="the ONNX file")
    parser.add_argument("--recording", type=Path, help="a folder of recorded answers")
    parser.add_argument("--checkpoint", type=Path, help="of the trained policy, which answers --frames")
    parser.add_argument("--frames", type=Path, help="the folder that benchmarks.world.generate filled")
    parser.add_argument("--count", type=int, default=12_000, help="of those frames, how many (12000)")
    parser.add_argument("--steps", type=int, default=2000, help="of training (2000)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if (arguments.recording is None) == (arguments.checkpoint is None or arguments.frames is None):
        parser.error("name a --recording, or a --checkpoint and --frames")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        recording = arguments.recording or Path(scratch)
        if arguments.recording is None:
            record_answers(arguments.checkpoint, arguments.frames, recording, arguments.count, arguments.threads)
        data = load(recording)
    print(f"{len(data.train):,} frames to learn from, {len(data.held_out):,} held out")
    head = train(data, arguments.steps, arguments.seed)
    export(head, data, arguments.out)
    within = LocalSettings().within_bins
    found = agreement(head, data.held_out, data, within)
    rows = [[text, f"{agreed}/{count}", f"{agreed / max(1, count):.0%}"] for text, (agreed, count) in found.items()]
    total = [sum(column) for column in zip(*found.values(), strict=True)]
    rows.append(["all", f"{total[0]}/{total[1]}", f"{total[0] / max(1, total[1]):.0%}"])
    print(table(["instruction", f"all dimensions within {within} bins, held out", "share"], rows))
    print(f"wrote {arguments.out}, {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
