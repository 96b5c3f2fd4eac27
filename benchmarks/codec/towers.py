"""Bytes and error of every rung at openvla-7b's size, on real frames: towers and projector of random weights.

    python -m benchmarks.codec.towers CLIPS... [--preset 7b] [--work DIR]

CLIPS as in `python -m benchmarks.codec`. The codec learns from the first frames of every clip and is measured on the
frames behind them, as with one's own robot. Random weights say nothing about tokens, and spread their energy over more
columns than trained ones do; sizes and times are the full model's. A 7b run writes 3 GB and takes 6 GB of memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import report
from benchmarks.checkpoint import PRESETS, write_checkpoint
from benchmarks.codec.clips import Source
from benchmarks.codec.rows import PICTURES, coded, saved
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.split.encoder_export import load_edge_model
from splitvla_edge.calibrate.learn import learn, sealed
from splitvla_shared.codec.transform import TransformCodec
from splitvla_shared.nouns import FloatArray, Image


def embeddings(work: Path, preset: str, seed: int, clips: Sequence[Sequence[Image]]) -> list[list[FloatArray]]:
    """Of every frame, float32 (patches, embed_dim), from a checkpoint that is drawn below `work`."""
    write_checkpoint(work, seed=seed, sizes=dataclasses.replace(PRESETS[preset], llm_layers=1))
    source = Checkpoint.open(work)
    model = load_edge_model(source.vision, source.vision_tensors)
    found: list[list[FloatArray]] = []
    with torch.inference_mode():
        for clip in clips:
            began = time.perf_counter()
            found.append([model(torch.from_numpy(frame.copy())[None])[0].numpy() for frame in clip])
            print(f"{len(clip)} frames: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def rows(codec: TransformCodec, clips: Sequence[Sequence[FloatArray]], frames: Sequence[Image]) -> Iterator[list[str]]:
    for chain in (False, True):
        for index in range(len(codec.tables.rungs)):
            each = coded(codec, index, clips, "predicted" if chain else "key", chain=chain)
            times = [f"{value:.1f}" for value in (each.sqnr_db, each.encode_ms, each.decode_ms)]
            yield [each.name, *_sizes(each.sizes), *times]
    for kind, quality in PICTURES:
        yield [f"{kind} q{quality}", *_sizes([len(saved(frame, kind, quality)) for frame in frames]), "", "", ""]


def _sizes(sizes: Sequence[int]) -> list[str]:
    return [f"{value:,.0f}" for value in np.percentile(sizes, (50, 95))]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="PATH or PATH@N")
    parser.add_argument("--preset", choices=PRESETS, default="7b")
    parser.add_argument("--learn-frames", type=int, default=10, help="of each clip (10)")
    parser.add_argument("--frames", type=int, default=6, help="of each clip, behind those (6)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the checkpoint is written meanwhile (/tmp)")
    arguments = parser.parse_args(argv)
    most, size = arguments.frames, PRESETS[arguments.preset].image_size
    clips = [Source.parse(text).squares(size, arguments.learn_frames + most) for text in arguments.clips]
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        found = embeddings(Path(folder) / "model", arguments.preset, arguments.seed, clips)
    patches, dim = found[0][0].shape
    codec = TransformCodec(sealed(learn([clip[:-most] for clip in found]))[0])
    measured = [frame for clip in clips for frame in clip[-most:]]
    title = report.heading(
        f"Codec: random {arguments.preset} towers on real frames, {patches} x {dim}",
        f"python -m benchmarks.codec.towers CLIPS... --preset {arguments.preset}",
        packages=("numpy", "torch", "pillow"),
        seed=arguments.seed,
        n=len(measured),
    )
    header = ("setting", "bytes p50", "p95", "SQNR dB", "encode CPU ms", "decode CPU ms")
    print(title + "\n" + report.table(header, rows(codec, [clip[-most:] for clip in found], measured)))


if __name__ == "__main__":
    main()
