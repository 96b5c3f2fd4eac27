"""An encoder that gives codec coefficients beside the one that gives embeddings: is folding the basis in for free?

    python -m benchmarks.folded_encoder BUNDLE/edge [-n ROUNDS] [--columns K] [--encoder fp32|fp16|int8]

The basis is random: its cost does not depend on its numbers. All take turns on one thread in one process, round by
round; the ratio is of CPU time and that of the same round, so that other work on the machine weighs on all alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import report
from splitvla_edge.calibrate.learn import sealed
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_shared.bundle import open_bundle
from splitvla_shared.codec import rans
from splitvla_shared.codec.tables import ALPHABETS, CONTEXTS, REFERENCE_LEVELS, CodecTables, RungTables
from splitvla_shared.codec.tokens import Grouping


def random_tables(patches: int, dim: int, columns: int) -> CodecTables:
    """An orthonormal basis, and one rung that nothing is coded with."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((dim, columns), dtype=np.float32))[0]
    counts = np.zeros((CONTEXTS, max(ALPHABETS)), np.uint32)
    for context, size in enumerate(ALPHABETS):
        counts[context, :size] = 1
        counts[context, 0] = rans.TOTAL - size + 1
    scales, gains = np.zeros(columns, np.uint8), np.zeros(columns, np.uint16)
    offsets = np.zeros((3, REFERENCE_LEVELS), np.int8)
    rung = RungTables("random", 1.0, 8, Grouping(columns, 0, 0), scales, scales, gains, offsets)
    return sealed(CodecTables(np.zeros((patches, dim), np.float32), basis, basis, counts, (rung,)))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-n", type=int, default=20, help="rounds (20)")
    parser.add_argument("--columns", type=int, default=512, help="coefficients of a patch (512)")
    parser.add_argument("--encoder", default="fp32", help="fp32, fp16 or int8 (fp32)")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle, "edge")
    spec = bundle.spec
    tables = random_tables(spec.patches, spec.embed_dim, min(arguments.columns, spec.embed_dim))
    whole = OnnxEncoder(bundle, 1, variant=arguments.encoder, provider="cpu")
    folded = OnnxEncoder(bundle, 1, variant=arguments.encoder, provider="cpu", tables=tables)
    image = np.random.default_rng(1).integers(0, 256, (spec.image_size,) * 2 + (3,), dtype=np.uint8)
    ways: dict[str, Callable[[], object]] = {
        "embedding, whole graph": lambda: whole.embed(image),
        "embedding, cut graph": lambda: folded.embed(image),
        "embedding, then numpy's product": lambda: tables.coefficients(whole.embed(image)),
        "coefficients, folded": lambda: folded.coefficients(image),
    }
    times = {name: np.array([0.0] * arguments.n) for name in ways}
    for index in range(arguments.n):
        for name, work in ways.items():
            began = time.process_time()
            work()
            times[name][index] = (time.process_time() - began) * 1e3
    baseline = next(iter(times.values()))
    rows = [
        [name, f"{np.median(each):.1f}", f"{each.min():.1f}", f"{np.median(each / baseline):.3f}"]
        for name, each in times.items()
    ]
    title = f"Encoder {arguments.encoder} of {spec.name}, {spec.patches} x {spec.embed_dim}, {tables.columns} columns"
    command = "python -m benchmarks.folded_encoder BUNDLE/edge"
    print(report.heading(title, command, packages=("numpy", "onnxruntime"), seed=0, n=arguments.n))
    print(report.table(("what", "CPU ms p50", "min", "ratio p50"), rows))


if __name__ == "__main__":
    main()
