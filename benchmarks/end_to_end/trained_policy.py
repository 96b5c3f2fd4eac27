"""The trained policy of the simulated world, with a codec that was calibrated for it: the ways of a model that acts.

The frames are recordings of that world (data/README.md): one episode of each task to learn from, another to measure on.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.end_to_end.site import Site, start_here
from benchmarks.frames import CLIP
from splitvla_edge.calibrate.command import MOST_FRAMES, CalibrateRequest, calibrate
from splitvla_edge.robots.metaworld.tasks import TASKS
from splitvla_shared.bundle import open_bundle
from splitvla_shared.codec.installed import Parcel, install, rewritten
from splitvla_shared.codec.sensitivity import PATCHES_FILE, SENSITIVITY_FILE
from splitvla_shared.replaced import exchange

NAME = "the trained policy of the simulated world"
LEARN, FRAMES = CLIP.parent / "world" / "learn", CLIP.parent / "world" / "drawer-open.mp4"
_ANSWERS = Path(__file__).resolve().parent.parent / "world" / "answers"  # its README says how they were made
INSTRUCTION = TASKS["drawer-open"].instruction
_RECORDED_HZ = 20.0
_CALIBRATION_FRAMES = 96  # of 135: all would keep a little more and cost the quick run a quarter of a minute
# The websocket with PyTorch behind it shows nothing here that the larger model does not.
_BASELINES = ("rest", "websocket_split_engine")


@contextlib.contextmanager
def trained_here(threads: int, precision: str) -> Iterator[Site]:
    """Split, calibrated and served on loopback, beside baselines that hold it whole.

    Raises ConfigError in a checkout without the checkpoint, Unreachable when a server does not start.
    """
    # torch is only where the servers are
    from benchmarks.closed_loop.trained import halves, trained

    checkpoint = trained()
    with halves(checkpoint) as bundles:
        weigh_by_answers(bundles)
        calibrate_halves(bundles, (LEARN,), threads, _RECORDED_HZ, _CALIBRATION_FRAMES)
        with start_here(
            checkpoint,
            bundles,
            unnorm_key=None,
            threads=threads,
            precision=precision,
            whole=True,
            baselines=_BASELINES,
        ) as site:
            yield site


def weigh_by_answers(bundles: Path) -> None:
    """What `splitvla-cloud measure-sensitivity` does, from what it found for this checkpoint when it was let run."""
    edge = open_bundle(bundles / "edge", "edge")
    files = {name: (_ANSWERS / name).read_bytes() for name in (SENSITIVITY_FILE, PATCHES_FILE)}
    with rewritten(edge, edge.spec, edge.extra, files) as whole:
        exchange(whole, edge.path)


def calibrate_halves(
    bundles: Path, frames: Sequence[Path], threads: int, hz: float, most_frames: int = MOST_FRAMES
) -> None:
    """What `splitvla-edge calibrate` and then `splitvla-cloud adopt-codec` do. Raises what they raise."""
    with tempfile.TemporaryDirectory() as folder:
        parcel = Path(folder) / "codec.parcel"
        request = CalibrateRequest(
            bundles / "edge", tuple(frames), parcel=parcel, threads=threads, hz=hz, most_frames=most_frames
        )
        calibrate(request, lambda stage, done, total: None)
        install(bundles / "cloud", Parcel.read(parcel))
