"""A random checkpoint of any size in openvla-7b's exact layout, written in a few hundred megabytes of memory.

    python -m benchmarks.random_checkpoint OUT --preset tiny|half|7b [--llama-layers N] [--shard-bytes B] [--seed N]

Full-size towers and projector with two Llama layers (3 GB) show what `split` needs of a machine: the peak does not
depend on how many layers follow.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from benchmarks.checkpoint import PRESETS, write_checkpoint
from splitvla_cloud.progress import TerminalProgress

# openvla-7b was saved with 7 GB a file.
_SHARD_BYTES = 7_000_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.random_checkpoint", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--llama-layers", type=int, metavar="N", help="another depth of the language model")
    parser.add_argument("--shard-bytes", type=int, metavar="B", default=_SHARD_BYTES, help="largest file (7 GB)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sizes = PRESETS[arguments.preset]
    if arguments.llama_layers is not None:
        sizes = dataclasses.replace(sizes, llm_layers=arguments.llama_layers)
    with TerminalProgress(sys.stderr) as progress:
        write_checkpoint(
            arguments.out,
            seed=arguments.seed,
            sizes=sizes,
            max_shard_bytes=arguments.shard_bytes,
            progress=progress,
        )
    total = sum(file.stat().st_size for file in arguments.out.glob("*.safetensors"))
    print(f"wrote {arguments.out}: {total / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
