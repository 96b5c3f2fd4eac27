"""Hold two bundles against the checkpoint that they were split from, stage by stage, on golden frames.

What it can't see is the robot's own resize, which it leaves alone so as not to repeat its errors: the frames are made
square by a second implementation of the same source, and a test of the project holds the two equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from splitvla_cloud.backbone import check_loadable
from splitvla_cloud.precision import Precision
from splitvla_cloud.settings import PRECISION_KEY
from splitvla_cloud.split.checkpoint import TOKENIZER, Checkpoint
from splitvla_cloud.split.fingerprint import json_sha256
from splitvla_cloud.split.progress import Progress, silent
from splitvla_cloud.verify.frames import BLACK, INSTRUCTIONS, WHITE, NamedFrame, built_in_frames, read_frames
from splitvla_cloud.verify.language import Case, actions_row, precision_rows, prompts_row, tokens_row, watched
from splitvla_cloud.verify.observed import Observed, ObservedEncoder
from splitvla_cloud.verify.table import Row, close_numbers, render_rows, same_numbers
from splitvla_cloud.verify.unsplit import Seen, UnsplitEncoder, pixel_values, prompt_ids, square
from splitvla_shared.actions import parse_statistics, select_statistics
from splitvla_shared.bundle import Bundle, file_sha256, open_bundle
from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import Image
from splitvla_shared.preprocess.image_pipelines import read_fill
from splitvla_shared.preprocess.images import GRAY
from splitvla_shared.probe import blindness

__all__ = ["Verification", "VerifyRequest", "render_rows", "verify"]


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """bundles: the folder that `split` made. adapter: the one that was merged, if any; base_statistics: as for `split`.

    frames: a folder of images.

    precision: of the bundle's backbone, None for the stored one or else fp32. precisions: those whose agreement with
    the unsplit model is reported as well. unnorm_key: None compares the actions of every dataset.
    """

    checkpoint: Path
    bundles: Path
    adapter: Path | None = None
    base_statistics: bool = False
    precision: Precision | None = None
    precisions: tuple[Precision, ...] = ()
    frames: Path | None = None
    unnorm_key: str | None = None
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Verification:
    """rows: the stages in order, up to the first that differs. agreement: a table, empty unless it was asked for."""

    rows: tuple[Row, ...]
    agreement: str = ""

    def check(self) -> None:
        """Raises BundleError naming the stage that differs."""
        for row in self.rows:
            if not row.passed:
                remedy = "split again, or do not serve this model"
                raise BundleError(f"stage {row.stage!r} differs: {row.worst} (asked for: {row.floor}); {remedy}")


def verify(request: VerifyRequest, progress: Progress | None = None) -> Verification:
    """Compare stage by stage and stop at the first that differs.

    One model is in memory at a time: the encoder in float32 (3 GB for openvla-7b), then the language model, unsplit
    and from the bundle, at 4 bytes a parameter for fp32 (27 GB) and 2 for the others (13.5 GB).
    Raises CheckpointError, BundleError, ConfigError or ObservationError when there is nothing to compare, before any
    model runs where it is an option that is wrong.
    """
    report = progress or silent
    source = Checkpoint.open(request.checkpoint, request.adapter, base_statistics=request.base_statistics)
    edge, cloud = open_bundle(request.bundles / "edge", "edge"), open_bundle(request.bundles / "cloud", "cloud")
    precision: Precision = request.precision or cloud.extra.get(PRECISION_KEY) or "fp32"
    check_loadable(cloud, precision, request.device)
    if request.unnorm_key is not None:
        select_statistics(parse_statistics(source.statistics), request.unnorm_key)
    frames = built_in_frames() + (read_frames(request.frames) if request.frames else [])
    rows: list[Row] = []
    case = None
    for step in _stages(request, precision, source, edge, cloud, frames, report):
        if isinstance(step, Case):
            case = step
            continue
        rows.append(step)
        if not step.passed:
            return Verification(tuple(rows))
    agreement = precision_rows(case, request.precisions, report) if case and request.precisions else ""
    return Verification(tuple(rows), agreement)


def _stages(
    request: VerifyRequest,
    precision: Precision,
    source: Checkpoint,
    edge: Bundle,
    cloud: Bundle,
    frames: list[NamedFrame],
    report: Progress,
) -> Iterator[Row | Case]:
    """The rows in order, computed one after the other; the Case is what the language model's rows are about."""
    yield _bundles_row(source, edge, cloud)
    images = [square(frame.image, source.vision) for frame in frames]
    seen = _see_unsplit(source, images, report)
    observed = _see_bundle(edge, source, images, report)
    yield from _vision_rows(source, images, seen, observed)
    prompts = [prompt_ids(source, text) for text in INSTRUCTIONS]
    yield prompts_row(cloud, prompts)
    case = Case(
        source,
        edge,
        cloud,
        tuple(frame.name for frame in frames),
        tuple(one.patches for one in seen),
        tuple(one.patches for one in observed),
        tuple(images),
        tuple(prompts),
        request.device,
    )
    yield case
    row, answers = tokens_row(case, precision, report)
    yield row
    yield actions_row(case, answers, request.unnorm_key)
    yield _sees_row(case, answers)


def _bundles_row(source: Checkpoint, edge: Bundle, cloud: Bundle) -> Row:
    wrong = edge.spec.differences(cloud.spec)
    if edge.spec.statistics_sha256 != json_sha256(source.statistics):
        wrong.append("the action statistics are not the checkpoint's")
    if edge.spec.tokenizer_sha256 != file_sha256(source.path / TOKENIZER):
        wrong.append("the tokenizer is not the checkpoint's")
    if (edge.spec.resize, edge.spec.image_size) != (source.vision.resize, source.vision.image_size):
        wrong.append("frames become square in another way than the checkpoint's")
    elif read_fill(edge) != (source.vision.letterbox_fill or GRAY):
        wrong.append("frames are padded with another colour than the checkpoint's")
    files = sum(1 for bundle in (edge, cloud) for file in bundle.path.rglob("*") if file.is_file())
    return Row("bundles", f"{files} files by SHA-256, both specs", "; ".join(wrong) or "none", "none", not wrong)


def _see_unsplit(source: Checkpoint, images: Sequence[Image], report: Progress) -> list[Seen]:
    report("unsplit encoder", 0, len(images))
    encoder = UnsplitEncoder(source, torch.float32)
    return [encoder.see(image) for image in watched(images, "unsplit encoder", report)]


def _see_bundle(edge: Bundle, source: Checkpoint, images: Sequence[Image], report: Progress) -> list[Observed]:
    report("edge bundle", 0, len(images))
    encoder = ObservedEncoder(edge.path, source.vision)
    return [encoder.see(image) for image in watched(images, "edge bundle", report)]


def _vision_rows(
    source: Checkpoint, images: Sequence[Image], seen: Sequence[Seen], observed: Sequence[Observed]
) -> Iterator[Row]:
    towers, frames = source.vision.towers, f"{len(images)} frames"
    yield same_numbers(
        "pixels",
        f"{frames} x {len(towers)} towers, normalised",
        [
            (pixel_values(image, tower), one.pixels[index])
            for image, one in zip(images, observed, strict=True)
            for index, tower in enumerate(towers)
        ],
    )
    for index, tower in enumerate(towers):
        pairs = [(mine.towers[index], theirs.towers[index]) for mine, theirs in zip(seen, observed, strict=True)]
        name = tower.prefix.removesuffix(".").rpartition(".")[2]
        yield close_numbers(f"tower {name}", f"{frames} x {tower.patches} patches of {tower.dim}", pairs)
    pairs = [(mine.patches, theirs.patches) for mine, theirs in zip(seen, observed, strict=True)]
    patches, dim = pairs[0][0].shape
    yield close_numbers("projected", f"{frames} x {patches} patches of {dim}", pairs)


def _sees_row(case: Case, answers: Sequence[Sequence[tuple[int, ...]]]) -> Row:
    """answers: the bundle's tokens, by frame and instruction."""
    black, white = (answers[case.names.index(name)] for name in (BLACK, WHITE))
    differing = sum(a != b for one, other in zip(black, white, strict=True) for a, b in zip(one, other, strict=True))
    total = sum(len(one) for one in black)
    worst = blindness(black, white) or f"{differing} of {total} tokens differ"
    return Row("black vs white", f"{len(black)} instructions", worst, "not the same", differing > 0)
