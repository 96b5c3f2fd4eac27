"""The language model's stages of `verify`: prompt ids, tokens, actions, and the agreement of each precision."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from splitvla_cloud.backbone import Backbone, fitting
from splitvla_cloud.precision import Precision, select_device
from splitvla_cloud.prompt import Prompt
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.split.progress import Progress
from splitvla_cloud.verify.frames import INSTRUCTIONS
from splitvla_cloud.verify.table import Row, render, same_numbers
from splitvla_cloud.verify.unsplit import Answer, UnsplitBackbone, UnsplitEncoder, actions
from splitvla_shared.actions import detokenize, parse_statistics, select_statistics
from splitvla_shared.bundle import Bundle
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import ActionArray, FloatArray, Image

T = TypeVar("T")
Tokens = list[list[tuple[int, ...]]]  # by frame and instruction
Answers = list[list[Answer]]
# How far the unsplit model's tokens may lie behind the best ones, on average, in standard deviations of the logits.
_SLACK: Mapping[Precision, float] = {"bf16": 0.1, "int8": 0.3, "nf4": 1.5, "fp8": 1.5, "int4": 1.5}
_BEYOND = 8  # ids on either side of the action tokens that are de-tokenised too: they are clipped


@dataclass(frozen=True, slots=True)
class Case:
    """What both language models are asked. names, patches and images: one a frame; prompts: one an instruction.

    unsplit_patches come from the checkpoint's encoder, patches from the edge bundle's. images are square.
    """

    source: Checkpoint
    edge: Bundle
    cloud: Bundle
    names: tuple[str, ...]
    unsplit_patches: tuple[FloatArray, ...]
    patches: tuple[FloatArray, ...]
    images: tuple[Image, ...]
    prompts: tuple[tuple[int, ...], ...]
    device: str

    @property
    def count(self) -> int:
        """Tokens of the longest answer."""
        return self.cloud.spec.chunk_length * self.cloud.spec.max_action_dims


def watched(items: Sequence[T], stage: str, report: Progress) -> Iterator[T]:
    """The items, each reported once it is dealt with."""
    for done, item in enumerate(items, start=1):
        yield item
        report(stage, done, len(items))


def prompts_row(cloud: Bundle, expected: Sequence[tuple[int, ...]]) -> Row:
    prompt = Prompt.load(cloud.path, cloud.spec)
    wrong = [
        f"{text!r}: {list(prompt.ids(text))}, unsplit {list(ids)}"
        for text, ids in zip(INSTRUCTIONS, expected, strict=True)
        if prompt.ids(text) != ids
    ]
    compared = f"{len(expected)} instructions, {sum(map(len, expected))} ids"
    return Row("prompt ids", compared, "; ".join(wrong) or "0 ids differ", "0", not wrong)


def tokens_row(case: Case, precision: Precision, report: Progress) -> tuple[Row, Tokens]:
    """The row, and the bundle's tokens. fp32: every token of a free-running answer is the same.

    Other types round differently on two machines already, so that their tokens are compared with the unsplit model's in
    bf16, teacher-forced: told what that model said, how far behind their own best do they find it?
    """
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    expected = _ask_unsplit(case, dtype, case.unsplit_patches, report)
    backbone = _load(case, precision, report)
    tokens = _ask(case, backbone, report)
    agreed, total = _agreement(tokens, expected)
    compared = f"{len(case.names)} frames x {len(case.prompts)} prompts x {case.count}, {precision}"
    if precision == "fp32":
        worst = f"{total - agreed} of {total} differ"
        return Row("tokens", compared, worst + _first_difference(case, tokens, expected), "0", agreed == total), tokens
    behind = float(np.mean(_behind(case, backbone, expected)))
    worst = f"{behind:.2g} std behind unsplit bf16, {agreed / total:.0%} alike"
    return Row("tokens", compared, worst, f"<= {_SLACK[precision]:g} std", behind <= _SLACK[precision]), tokens


def actions_row(case: Case, tokens: Tokens, unnorm_key: str | None) -> Row:
    """Numbers of the bundle's statistics and of the checkpoint's, for these tokens and for every id near the bins."""
    spec = case.edge.spec
    parsed = parse_statistics(json.loads((case.edge.path / "statistics.json").read_text(encoding="utf-8")))
    keys = [select_statistics(parsed, unnorm_key).key] if unnorm_key else sorted(parsed)
    around = range(spec.action_vocab_size - spec.action_bins - _BEYOND, spec.action_vocab_size + _BEYOND)
    pairs: list[tuple[ActionArray, ActionArray]] = []
    for key in keys:
        dims = parsed[key].dims
        said = [ids[:dims] for frame in tokens for ids in frame] + [(number,) * dims for number in around]
        for ids in said:
            ours = detokenize(ids, vocab_size=spec.action_vocab_size, bins=spec.action_bins)
            theirs = actions(ids, case.source, case.source.statistics[key])
            pairs.append((theirs, parsed[key].unnormalize(ours.normalized)))
    return same_numbers("actions", f"{len(pairs)} answers, {len(keys)} datasets", pairs)  # type: ignore[arg-type]


def precision_rows(case: Case, precisions: Sequence[Precision], report: Progress) -> str:
    """How often each precision says what the unsplit model says, as a table.

    Free-running: one early slip changes what follows. Teacher-forced: each token judged alone, and how far behind its
    own best it finds the expected one, in standard deviations of the logits.
    """
    exact = _ask_unsplit(case, torch.float32, case.unsplit_patches, report)
    encoder = UnsplitEncoder(case.source, torch.bfloat16)
    bf16_patches = [encoder.see(image).patches for image in watched(case.images, "unsplit encoder bf16", report)]
    del encoder
    half = _ask_unsplit(case, torch.bfloat16, bf16_patches, report)
    itself = [[answer.tokens for answer in frame] for frame in half]
    found = [_precision_row(case, precision, exact, half, report) for precision in precisions]
    return render(
        ("backbone", "as unsplit fp32", "as unsplit bf16", "teacher-forced as fp32", "behind"),
        [("unsplit bf16", _share(itself, exact), "100.0%", "-", "-"), *(row for row, _ in found)],
    ) + "".join(note for _, note in found)


def _precision_row(
    case: Case, precision: Precision, exact: Answers, half: Answers, report: Progress
) -> tuple[tuple[str, str, str, str, str], str]:
    """The row, or why it is empty. Its backbone is nobody's afterwards, because the next one needs the room."""
    name = f"split {precision}"
    try:
        backbone = _load(case, precision, report)
    except ConfigError as error:
        return (name, "-", "-", "-", "not on this machine"), f"\n{error}"
    tokens = _ask(case, backbone, report)
    behind = _behind(case, backbone, exact)
    forced = f"{np.mean(behind == 0):.1%}"
    return (name, _share(tokens, exact), _share(tokens, half), forced, f"{np.mean(behind):.3f} std"), ""


def _ask_unsplit(case: Case, dtype: torch.dtype, patches: Sequence[FloatArray], report: Progress) -> Answers:
    stage = f"unsplit backbone {str(dtype).removeprefix('torch.')}"
    report(stage, 0, len(patches))
    _make_room()
    device = select_device(case.device)
    with fitting(stage, device, "use --device cpu, or a device with more memory"):
        model = UnsplitBackbone(case.source, dtype, device)
        return [
            [model.answer(prompt, one, case.count) for prompt in case.prompts]
            for one in watched(patches, stage, report)
        ]


def _load(case: Case, precision: Precision, report: Progress) -> Backbone:
    report(f"cloud bundle {precision}", 0, len(case.patches))
    _make_room()
    return Backbone.load(case.cloud, precision, case.device)


def _make_room() -> None:
    """transformers' first import keeps the caller's frame in a cycle, and with it the first model that was loaded."""
    gc.collect()


def _ask(case: Case, backbone: Backbone, report: Progress) -> Tokens:
    stage = f"cloud bundle {backbone.precision}"
    return [
        [backbone.full_answer(prompt, one, case.count) for prompt in case.prompts]
        for one in watched(case.patches, stage, report)
    ]


def _behind(case: Case, backbone: Backbone, expected: Answers) -> FloatArray:
    """Teacher-forced on the unsplit model's tokens: by how many standard deviations each is not the best."""
    behind = []
    for patches, frame in zip(case.patches, expected, strict=True):
        for prompt, answer in zip(case.prompts, frame, strict=True):
            logits = backbone.score(prompt, patches, answer.tokens)
            said = logits[np.arange(len(answer.tokens)), list(answer.tokens)]
            behind.append((logits.max(axis=-1) - said) / np.maximum(answer.spread, 1e-30))
    joined: FloatArray = np.concatenate(behind)
    return joined


def _agreement(tokens: Tokens, expected: Answers) -> tuple[int, int]:
    same = [
        mine == theirs
        for ours, frame in zip(tokens, expected, strict=True)
        for ids, answer in zip(ours, frame, strict=True)
        for mine, theirs in zip(ids, answer.tokens, strict=True)
    ]
    return sum(same), len(same)


def _share(tokens: Tokens, expected: Answers) -> str:
    same, total = _agreement(tokens, expected)
    return f"{same / total:.1%}"


def _first_difference(case: Case, tokens: Tokens, expected: Answers) -> str:
    for name, ours, frame in zip(case.names, tokens, expected, strict=True):
        for text, ids, answer in zip(INSTRUCTIONS, ours, frame, strict=True):
            for index, (mine, theirs) in enumerate(zip(ids, answer.tokens, strict=True)):
                if mine != theirs:
                    where = f"frame {name}, {text!r}, token {index + 1}"
                    return f"; first: {where}: {mine}, unsplit {theirs} (margin {answer.margins[index]:.2g})"
    return ""
