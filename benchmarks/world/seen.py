"""What the trained towers see in the frames, computed once, so that the language model can be trained alone.

    python -m benchmarks.world.seen RUN FRAMES

Writes the projected patches of every shard of FRAMES below RUN/seen, the newest rounds of DAgger first; rerunning goes
on where it was stopped. benchmarks.world.train starts it by itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.world.actor import load_policy
from benchmarks.world.model import Policy
from benchmarks.world.shards import Shard, shard_paths

FOLDER = "seen"
_AT_ONCE = 16


@torch.inference_mode()
def look(policy: Policy, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    """(n, 224, 224, 3) to (n, 256, dim)."""
    parts = []
    for start in range(0, len(images), _AT_ONCE):
        part = torch.from_numpy(np.ascontiguousarray(images[start : start + _AT_ONCE]))
        everything = torch.arange(policy.sizes.patches).expand(len(part), -1)
        parts.append(policy.patches(part, everything).half().numpy())
    return np.concatenate(parts)


def waiting(frames: Path, seen: Path) -> list[Path]:
    """Shards that have not been looked at: `dagger2-...` before `dagger1-...` before `expert-...`."""
    paths = [path for path in shard_paths(frames) if not (seen / f"{path.name}.npy").is_file()]
    rounds = sorted({path.name.split("-")[0] for path in paths if path.name.startswith("dagger")}, reverse=True)
    return sorted(paths, key=lambda path: [*rounds, "expert"].index(path.name.split("-")[0]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.world.seen", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("frames", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy, seen = load_policy(arguments.run).eval(), arguments.run / FOLDER
    seen.mkdir(exist_ok=True)
    while paths := waiting(arguments.frames, seen):
        shard = Shard.open(paths[0])
        part = seen / f".{paths[0].name}.part"
        with part.open("wb") as file:
            np.save(file, look(policy, shard.images[shard.pictures()]))
        part.replace(seen / f"{paths[0].name}.npy")
        print(f"{paths[0].name}: {len(paths) - 1} shards left", flush=True)


if __name__ == "__main__":
    main()
