"""What the demo can show: the trained policy in the simulator, or recorded frames where there is no simulator."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.closed_loop.filmstrip import drawn, shots_of_run, spread, write_film, write_strip
from benchmarks.closed_loop.trained import trained
from benchmarks.frames import CLIP, INSTRUCTION, read_frames
from benchmarks.tiny_checkpoint import write_tiny_checkpoint
from splitvla_cloud.split import split
from splitvla_edge.daemon.episodes import Outcome, read_episodes
from splitvla_edge.robots.metaworld.adapter import check_machine
from splitvla_edge.robots.metaworld.tasks import find_task
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import Image

_HZ = 5.0  # of the clip, of the WidowX's own control, and of the simulated arm
_FRAMES = 6
_TASK, _SEED, _EPISODES = "drawer-open", 1_000_000, 3
# A demo must come to its end on a busy laptop too, where both machines and the world share a few cores.
_LENIENT = ("fallback.max_age_ms=500", "fallback.hold_to_stop_s=30", "fallback.overrun_ticks=20")
_RELAXED = "Limits are relaxed for a busy machine: pictures up to 500 ms old, 30 s of hold, ticks 20 periods late."


@dataclass(frozen=True, slots=True)
class Script:
    """Seconds from the first action: when the server dies, how long it stays dead, when the run ends at the latest."""

    kill_at_s: float
    dead_for_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Show:
    """One demo. bundles: makes both halves under the run's folder. options: of `splitvla-edge run`.

    frames: of the run's folder, for the picture. verdict: says how it went; 0 when that is what was to be shown.
    """

    intro: str
    title: str
    script: Script
    options: tuple[str, ...]
    bundles: Callable[[Path], Path]
    frames: Callable[[Path], list[Image]]
    verdict: Callable[[Path], int]


def choose_show(checkpoint: Path | None) -> Show:
    """The simulator where this machine has all of it; otherwise the recorded frames, after a line that says why."""
    try:
        return simulated(checkpoint)
    except ConfigError as error:
        print(f"demo: recorded frames instead of the simulator: {error}", flush=True)
        return recorded()


def simulated(checkpoint: Path | None) -> Show:
    """checkpoint: of a policy for this world, None for the committed one.

    Raises ConfigError where the extra, a GL library or the trained policy is missing.
    """
    check_machine()
    policy, task = checkpoint or trained(), find_task(_TASK)
    options = ["--robot", f"metaworld:{_TASK}", "--seed", str(_SEED), "--episodes", str(_EPISODES)]
    options += ["--control-hz", f"{_HZ:g}"]
    for text in ("simulator.until_done=true", "simulator.record=true", *_LENIENT):
        options += ["--set", text]
    return Show(
        intro=f'a trained policy is told "{task.instruction}", in a simulator that waits for nobody. {_RELAXED}',
        title=f'"{task.instruction}" at {_HZ:g} Hz over the split model; the server is killed and comes back',
        script=Script(kill_at_s=0.9, dead_for_s=2.0, end_s=60.0),
        options=tuple(options),
        bundles=lambda run_dir: _split(policy, run_dir),
        frames=lambda run_dir: [drawn(shot) for shot in spread(shots_of_run(run_dir), _FRAMES)],
        verdict=_task_is_done,
    )


def recorded() -> Show:
    options = ["--robot", "replay", "--frames", str(CLIP), "--fps", f"{_HZ:g}", "--loop"]
    options += ["--control-hz", f"{_HZ:g}", "--instruction", INSTRUCTION, "--unnorm-key", "widowx_tiny"]
    return Show(
        intro="real WidowX frames, random weights, so the actions mean nothing.",
        title=f"A WidowX at {_HZ:g} Hz over the split model; the server is killed and comes back",
        script=Script(kill_at_s=8.0, dead_for_s=2.0, end_s=22.0),
        options=tuple(options),
        bundles=_tiny,
        frames=_clip_frames,
        verdict=lambda run_dir: 0,
    )


def _tiny(run_dir: Path) -> Path:
    print("making a tiny checkpoint in openvla-7b's layout ...", flush=True)
    write_tiny_checkpoint(run_dir / "checkpoint", seed=0)
    return _split(run_dir / "checkpoint", run_dir)


def _split(checkpoint: Path, run_dir: Path) -> Path:
    spec = split(checkpoint, run_dir / "bundles")
    print(f"split: {spec.patches} patches of {spec.embed_dim}, fingerprint {spec.fingerprint[:16]}", flush=True)
    return run_dir / "bundles"


def _clip_frames(run_dir: Path) -> list[Image]:
    frames = read_frames()
    return [frames[round(index * (len(frames) - 1) / (_FRAMES - 1))] for index in range(_FRAMES)]


def _task_is_done(run_dir: Path) -> int:
    shots = shots_of_run(run_dir)
    write_strip(shots, run_dir / "episode.png")
    write_film(shots, run_dir / "episode.gif", fps=_HZ)
    shutil.rmtree(run_dir / "frames")  # the film has them all
    print(f"film      {run_dir / 'episode.gif'}")
    episodes = read_episodes(run_dir)
    for episode in episodes:
        print(episode.line())
    if not any(episode.outcome is Outcome.SUCCESS for episode in episodes):
        print("FAILED: the task was not done")
        return 1
    print(f'"{find_task(_TASK).instruction}": done all the same.')
    return 0
