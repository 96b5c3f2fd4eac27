"""A small checkpoint in openvla-7b's exact layout: seeded random weights and a tokenizer made in code.

    python -m benchmarks.tiny_checkpoint OUT [--seed N]

It says nothing about how well a robot is driven. It exists so that every program, test and benchmark runs without a
15 GB download: about 2.7 MB, two ViT towers, two Llama layers, 1024 token pieces of which the last 256 are actions.
Larger ones come from benchmarks.random_checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.checkpoint import Layout, Sizes
from benchmarks.checkpoint import write_checkpoint as write_tiny_checkpoint

__all__ = ["Layout", "Sizes", "write_tiny_checkpoint"]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tiny_checkpoint", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_tiny_checkpoint(arguments.out, seed=arguments.seed)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
