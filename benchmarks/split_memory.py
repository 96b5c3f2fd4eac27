"""Peak memory and time of `splitvla-cloud split`, as a whole and part by part, on a checkpoint with full-size towers.

    python -m benchmarks.split_memory [--preset tiny|half|7b] [--llama-layers N] [--work DIR] [--checkpoint DIR]

Each row is a process of its own; its peak is the kernel's count of resident memory. The checkpoint (3 GB with the
defaults) and the bundles lie below --work and are removed afterwards.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import report
from benchmarks.checkpoint import PRESETS, write_checkpoint
from splitvla_cloud.precision import Quantised
from splitvla_cloud.split.backbone_export import export_backbone
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.split.encoder_export import export_encoder
from splitvla_cloud.split.fingerprint import tensors_sha256

_PACKAGES = ("torch", "transformers", "onnx", "bitsandbytes")


def _ignore(count: int) -> None:
    pass


def _read(source: Checkpoint, out: Path) -> None:
    tensors_sha256(source.vision_tensors, {}, _ignore)
    tensors_sha256(source.language_tensors, {}, _ignore)


def _encoder(source: Checkpoint, out: Path) -> None:
    export_encoder(source.vision, source.vision_tensors, out / "encoder.onnx")


def _backbone(precision: Quantised | None) -> Callable[[Checkpoint, Path], None]:
    def write(source: Checkpoint, out: Path) -> None:
        export_backbone(source.language, source.language_tensors, source.path, out, _ignore, precision=precision)

    return write


# What a row is called, and the part of `split` that its process runs; None runs the command.
STAGES: dict[str, Callable[[Checkpoint, Path], None] | None] = {
    "imports and headers alone": lambda source, out: None,
    "check: hash, find NaN": _read,
    "robot's half: ONNX export": _encoder,
    "cloud half, as stored": _backbone(None),
    "cloud half, int8": _backbone("int8"),
    "cloud half, nf4": _backbone("nf4"),
    "whole `splitvla-cloud split`": None,
}


def main() -> None:
    arguments = _arguments()
    if arguments.stage:
        arguments.out.mkdir()
        run = STAGES[arguments.stage]
        assert run is not None
        run(Checkpoint.open(arguments.checkpoint), arguments.out)
        return
    sizes = PRESETS[arguments.preset]
    if arguments.llama_layers is not None:
        sizes = dataclasses.replace(sizes, llm_layers=arguments.llama_layers)
    with tempfile.TemporaryDirectory(dir=arguments.work, prefix="split-memory-") as work:
        checkpoint = arguments.checkpoint
        if checkpoint is None:
            checkpoint = Path(work) / "checkpoint"
            write_checkpoint(checkpoint, sizes=sizes)
        rows = [_row(name, checkpoint, Path(work) / "out") for name in STAGES]
    layers = sizes.llm_layers if arguments.checkpoint is None else "its"
    title = f"Memory and time of `split`: {arguments.preset} towers and projector, {layers} Llama layers"
    command = f"python -m benchmarks.split_memory --preset {arguments.preset} --llama-layers {sizes.llm_layers}"
    print(report.heading(title, command, packages=_PACKAGES, seed=0, n=1))
    print(report.table(("part", "peak RSS", "time", "written"), rows))


def _row(name: str, checkpoint: Path, out: Path) -> tuple[str, ...]:
    command = [sys.executable, "-m", "benchmarks.split_memory"]
    command += ["--stage", name, "--checkpoint", str(checkpoint), "--out", str(out)]
    if STAGES[name] is None:
        command = [sys.executable, "-m", "splitvla_cloud", "split", str(checkpoint), "--out", str(out)]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(f"{name}: exit status {os.waitstatus_to_exitcode(status)}; run it again: {' '.join(command)}")
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    shutil.rmtree(out)
    return name, f"{usage.ru_maxrss / 2**20:.2f} GiB", f"{seconds:.0f} s", f"{written / 1e9:.2f} GB"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.split_memory", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--preset", choices=PRESETS, default="7b")
    parser.add_argument("--llama-layers", type=int, default=2, metavar="N", help="depth of the language model (2)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder with room for checkpoint and bundles")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="an existing one instead of a random one")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)  # of the processes that are measured
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
