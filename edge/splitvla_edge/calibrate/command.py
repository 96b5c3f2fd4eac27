"""`splitvla-edge calibrate`: from the user's frames to a codec in both bundles, under a new fingerprint."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitvla_edge.calibrate.frames import Selection, find_sources, read_clips, select
from splitvla_edge.calibrate.learn import MOST_COLUMNS, Clip, hold_out, learn, sealed
from splitvla_edge.calibrate.measure import measure, measure_plain
from splitvla_edge.calibrate.report import check_plot, draw
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.encoding.probe import probed
from splitvla_edge.encoding.providers import AUTO
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.codec.installed import Parcel, calibrated, check_same, staged
from splitvla_shared.codec.sensitivity import SENSITIVITY_FILE, Sensitivity, load_sensitivity
from splitvla_shared.codec.tables import MAX_COLUMNS, CodecTables
from splitvla_shared.codec.transform import TransformCodec
from splitvla_shared.errors import BundleError, CodecError, ConfigError, ObservationError
from splitvla_shared.image_pipelines import parse_image_pipeline
from splitvla_shared.preprocess.image_pipelines import build_pipeline, read_fill, read_pipeline
from splitvla_shared.replaced import check_place, exchange
from splitvla_shared.rungs import CODEC_KEY, RungCost
from splitvla_shared.spec import ModelSpec

LEAST_FRAMES, MOST_FRAMES = 16, 240
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class CalibrateRequest:
    """What the command line asks for.

    bundle: the edge half. cloud_bundle: the other half where it lies on this machine; None writes a parcel, to `parcel`
    or beside the bundle. weighted: by what the backbone reacts to; None: where the bundle says what that is. hz: at
    which the robot will send frames. columns: the most coefficients of a patch. plot: a PNG file, None for no plot.
    """

    bundle: Path
    frames: tuple[Path, ...]
    cloud_bundle: Path | None = None
    parcel: Path | None = None
    weighted: bool | None = None
    columns: int = MOST_COLUMNS
    most_frames: int = MOST_FRAMES
    hz: float = 5.0
    plot: Path | None = None
    image_pipeline: str | None = None
    camera_transform: str = "none"
    threads: int | None = None
    provider: str = AUTO


@dataclass(frozen=True, slots=True)
class Calibration:
    """learned, held_out: frames. parcel: the file to carry to the cloud bundle's machine, None where there is none."""

    spec: ModelSpec
    costs: tuple[RungCost, ...]
    learned: int
    held_out: int
    weighted: bool
    parcel: Path | None


def calibrate(request: CalibrateRequest, progress: Progress) -> Calibration:
    """Learn, measure, and put the codec into the bundles. Whatever can be refused is refused before the encoder runs.

    Both bundles are as they were when it fails, and whole whenever the process dies. Raises ConfigError,
    ObservationError for frames that can't be read or are too few, BundleError.
    """
    bundle, cloud = _checked(request)
    selections = _selected(request)
    sensitivity = _sensitivity(request, bundle)
    clips = _embedded(request, bundle, selections, progress)
    training, held = hold_out(clips)
    frames = tuple(sum(len(clip) for clip in part) for part in (training, held))
    progress("learning", 0, 1)
    tables, data = sealed(learn(training, columns=request.columns, sensitivity=sensitivity))
    progress("learning", 1, 1)
    costs = _measured(tables, held, sensitivity, progress)
    spec = calibrated(bundle.spec, tables)
    if request.plot is not None:
        draw(costs, request.plot, f"{spec.name}, {frames[1]} frames not learned from")
    parcel = None
    if cloud is None:
        parcel = request.parcel or _default_parcel(bundle, spec)
        Parcel(data, spec).write(parcel)
    weighted = sensitivity is not None
    about = {
        "learned_frames": frames[0],
        "held_out_frames": frames[1],
        "weighted": weighted,
        "rungs": [dataclasses.asdict(cost) for cost in costs],
    }
    _install(bundle, cloud, Parcel(data, spec), {**bundle.extra, CODEC_KEY: about})
    return Calibration(spec, costs, frames[0], frames[1], weighted, parcel)


def _checked(request: CalibrateRequest) -> tuple[Bundle, Bundle | None]:
    """The two bundles, once everything that costs nothing to check is checked."""
    in_range = 8 <= request.columns <= MAX_COLUMNS and request.most_frames >= LEAST_FRAMES
    if not in_range or not 0.1 <= request.hz <= 1000:
        raise ConfigError(
            f"columns {request.columns}, max-frames {request.most_frames}, hz {request.hz:g}: "
            f"expected 8..{MAX_COLUMNS}, at least {LEAST_FRAMES}, and 0.1..1000"
        )
    if request.cloud_bundle is not None and request.parcel is not None:
        raise ConfigError("--parcel is for a cloud bundle on another machine; leave it out, or --cloud-bundle")
    for name, path in (("--parcel", request.parcel), ("--plot", request.plot)):
        if path is not None and path.exists():
            raise ConfigError(f"{name} {path} is there already; name another file")
    check_plot(request.plot)
    for folder in (request.bundle, request.cloud_bundle, request.parcel):
        if folder is not None:
            check_place(folder)
    bundle = open_bundle(request.bundle, "edge")
    cloud = None
    if request.cloud_bundle is not None:
        cloud = open_bundle(request.cloud_bundle, "cloud")
        check_same(request.cloud_bundle, cloud.spec, bundle.spec)
    return bundle, cloud


def _selected(request: CalibrateRequest) -> list[Selection]:
    selections = select(find_sources(request.frames), request.hz, request.most_frames)
    count = sum(selection.count for selection in selections)
    if count < LEAST_FRAMES:
        raise ObservationError(
            f"--frames holds {count} frames at {request.hz:g} a second; at least {LEAST_FRAMES} are needed, better "
            "hundreds, of every task, place and light that the robot will see"
        )
    return selections


def _sensitivity(request: CalibrateRequest, bundle: Bundle) -> Sensitivity | None:
    if request.weighted is False:
        return None
    found = load_sensitivity(bundle)
    if found is None and request.weighted:
        raise ConfigError(f"{bundle.path} has no {SENSITIVITY_FILE}; split again with this version, or use --plain")
    return found


def _embedded(
    request: CalibrateRequest, bundle: Bundle, selections: Sequence[Selection], progress: Progress
) -> list[Clip]:
    """Embeddings by the exact encoder, which every other one stands in for."""
    pipeline = read_pipeline(bundle) if request.image_pipeline is None else parse_image_pipeline(request.image_pipeline)
    square = build_pipeline(pipeline, request.camera_transform, bundle.spec, read_fill(bundle))
    encoder = probed(OnnxEncoder(bundle, request.threads, provider=request.provider), bundle)
    total = sum(selection.count for selection in selections)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("frames", done, total)

    clips: list[Clip] = [
        [encoder.embed(image) for image in images] for images in read_clips(selections, square, advance)
    ]
    found = sum(len(clip) for clip in clips)
    if found < LEAST_FRAMES:
        raise ObservationError(f"only {found} of {total} frames differ from the one before; record a robot that moves")
    return clips


def _measured(
    tables: CodecTables, held: Sequence[Clip], sensitivity: Sensitivity | None, progress: Progress
) -> tuple[RungCost, ...]:
    progress("measuring", 0, 2)
    plain = measure_plain(tables.mean, held, sensitivity)
    progress("measuring", 1, 2)
    try:
        rungs = measure(TransformCodec(tables), held, sensitivity)
    except CodecError as error:
        raise ObservationError(
            f"the frames that were kept for measuring are unlike the others ({error}); give more of every scene"
        ) from error
    progress("measuring", 2, 2)
    return (*plain, *rungs)


def _default_parcel(bundle: Bundle, spec: ModelSpec) -> Path:
    path = bundle.path.resolve().parent / f"codec-{spec.fingerprint[:12]}.parcel"
    path.unlink(missing_ok=True)  # the same name is the same content
    return path


def _install(bundle: Bundle, cloud: Bundle | None, parcel: Parcel, extra: Mapping[str, Any]) -> None:
    """Both halves are complete on the disk before the first of them takes its place."""
    with contextlib.ExitStack() as stack:
        halves = [(stack.enter_context(staged(bundle, parcel, extra)), bundle.path)]
        if cloud is not None:
            halves.append((stack.enter_context(staged(cloud, parcel, cloud.extra)), cloud.path))
        _exchange_all(halves)


def _exchange_all(halves: Sequence[tuple[Path, Path]]) -> None:
    """Every folder changes places with its new one, or none does."""
    with contextlib.ExitStack() as undo:
        for whole, folder in halves:
            try:
                exchange(whole, folder)
            except OSError as error:
                were = "both halves are as they were" if len(halves) > 1 else "it is as it was"
                raise BundleError(f"can't replace {folder}: {error.strerror or error}; {were}") from error
            undo.callback(_put_back, whole, folder, halves[-1][1])
        undo.pop_all()


def _put_back(before: Path, folder: Path, other: Path) -> None:
    try:
        exchange(before, folder)
    except OSError as error:
        raise BundleError(
            f"{folder} holds the new codec and {other} does not; calibrate again when the disk works "
            f"({error.strerror or error})"
        ) from error
