"""Bytes against tokens: every rung of the KLT codec beside JPEG, WebP and H.264 of the same frames.

    python -m benchmarks.codec BUNDLES CLIPS... [--plot FILE]

BUNDLES holds edge/ and cloud/ as `split` left them. A clip is PATH or PATH@N, every Nth frame of a video, of a folder
of images, or of a folder with images.npy. Every third clip is measured on, the codec learns from the others; `--within`
learns from the first half of each clip and measures on the second. Three codecs are learned: a basis by energy alone,
one weighted by what the backbone's first layer reacts to, and one by what the answers to the learned frames react to. A
rung's embedding is decoded and given to the backbone; a picture is decoded and run through the whole model. All are
compared with what the model says of the unharmed frame.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.codec.clips import Clip, Model, Source
from benchmarks.codec.plot import draw
from benchmarks.codec.rows import BASES, HEADER, Row, pictures, plain, rungs, videos
from splitvla_edge.calibrate.learn import learn, sealed
from splitvla_shared.codec.transform import TransformCodec

_ENOUGH = 0.99


def read(model: Model, arguments: argparse.Namespace) -> tuple[list[Clip], list[Clip]]:
    """Clips to learn from, and clips to measure on; no frame is in both."""
    sources = [Source.parse(text) for text in arguments.clips]
    learn_most, most = arguments.learn_frames, arguments.frames
    if arguments.within:
        whole = [model.clip(source, learn_most + most) for source in sources]
        return [clip.part(slice(-most)) for clip in whole], [clip.part(slice(-most, None)) for clip in whole]
    held = sources[:: arguments.hold_out]
    learned = [model.clip(source, learn_most) for source in sources if source not in held]
    return learned, [model.clip(source, most) for source in held]


def verdict(rows: Sequence[Row]) -> str:
    """The smallest rung of each kind that keeps 99 % of the tokens, as do all above it, beside its JPEG."""
    lines = []
    for kind, picture in (("key", "JPEG q95"), ("predicted", "JPEG q90")):
        limit = next(row for row in rows if row.name == picture)
        good: list[Row] = []
        for label in BASES:
            ladder = [row for row in rows if row.name.startswith(f"{label} {kind} ")]  # best first
            good += itertools.takewhile(lambda row: row.agreement >= _ENOUGH, ladder)
        best = min(good, key=lambda row: float(np.median(row.sizes)), default=None)
        found = "none" if best is None else f"{best.name}: {np.median(best.sizes):,.0f} B, {best.agreement:.2%}"
        lines.append(f"- {kind}, at least 99 %: {found}; {picture}: {np.median(limit.sizes):,.0f} B")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path)
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="PATH or PATH@N")
    parser.add_argument("--learn-frames", type=int, default=24, help="of each clip that is learned from (24)")
    parser.add_argument("--frames", type=int, default=12, help="of each clip that is measured on (12)")
    parser.add_argument("--hold-out", type=int, default=3, metavar="N", help="every Nth clip is measured on (3)")
    parser.add_argument(
        "--within", action="store_true", help="learn from the beginning of each clip, measure behind it"
    )
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args(argv)
    model = Model(arguments.bundles)
    learned, clips = read(model, arguments)
    embeddings = [clip.embeddings for clip in learned]
    codecs = {
        label: TransformCodec(sealed(learn(embeddings, sensitivity=sensitivity))[0])
        for label, sensitivity in zip(BASES, (None, model.first_layer, model.answers(learned)), strict=True)
    }
    rows = [
        *plain(model, clips),
        *(
            row
            for kind, chain in (("key", False), ("predicted", True))
            for label, codec in codecs.items()
            for row in rungs(model, clips, codec, f"{label} {kind}", chain=chain)
        ),
        *pictures(model, clips),
        *videos(model, clips),
    ]
    title = report.heading(
        f"Codec: {model.spec.name}, {model.spec.patches} x {model.spec.embed_dim}, frames not learned from",
        "python -m benchmarks.codec BUNDLES CLIPS...",
        packages=("numpy", "onnxruntime", "pillow"),
        seed=0,
        n=sum(len(clip.frames) for clip in clips),
    )
    print(title + "\n" + report.table(HEADER, [row.cells() for row in rows]) + "\n" + verdict(rows))
    if arguments.plot:
        draw(rows, arguments.plot)


if __name__ == "__main__":
    main()
