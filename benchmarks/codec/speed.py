"""How long each payload scheme and each rung of the codec takes on one OpenVLA camera's embedding, and its bytes.

    python -m benchmarks.codec.speed [-n CALLS] [--seed SEED]

The tensors are drawn, not recorded. Plain schemes: Laplace elements with 16 channels a hundred times larger, as
residual streams have; bytes of the raw ones don't depend on the values. Codec: 256 rows of coefficients that fall off
so that the best rung needs some 500 columns; its times depend on the bytes. They are CPU time of one thread from
coefficients to bytes and from bytes to numbers, without the matmul that makes an embedding of the numbers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks import report
from benchmarks.codec.drawn import drawn_codec, drawn_coefficients
from splitvla_edge.calibrate.series import series
from splitvla_shared.codec import SCHEMES, decode, encode
from splitvla_shared.nouns import FloatArray

SHAPE = (256, 4096)
_OUTLIER_CHANNELS, _OUTLIER_FACTOR = 16, 100
_WARM_UP = 3


def heavy_tailed(seed: int) -> FloatArray:
    """float32 (256, 4096)."""
    rng = np.random.default_rng(seed)
    patches = rng.laplace(size=SHAPE).astype(np.float32)
    patches[:, rng.choice(SHAPE[1], _OUTLIER_CHANNELS, replace=False)] *= _OUTLIER_FACTOR
    return patches


def measure(n: int, seed: int) -> str:
    """The Markdown table."""
    patches = heavy_tailed(seed)
    rows = []
    for scheme in SCHEMES:
        tensor = encode(patches, scheme)
        error = np.linalg.norm(decode(tensor) - patches) / np.linalg.norm(patches)
        cells = [*_times(n, partial(encode, patches, scheme)), *_times(n, partial(decode, tensor))]
        rows.append([scheme.name, *cells, f"{len(tensor.data):,}", f"{error:.2%}"])
    title = report.heading(
        "Codec: one camera's embedding, 256 x 4096, one thread",
        f"python -m benchmarks.codec.speed -n {n}",
        packages=("numpy", "zstandard"),
        seed=seed,
        n=n,
    )
    header = ("scheme", "encode p50 ms", "p90", "decode p50 ms", "p90", "bytes", "relative error")
    return title + "\n" + report.table(header, rows)


def measure_codec(n: int, seed: int) -> str:
    """The Markdown table of the codec's rungs: key frames, and differences from the frame before."""
    codec = drawn_codec(seed)
    frames = drawn_coefficients(codec, n, seed + 1)
    rows = []
    for index, rung in enumerate(codec.tables.rungs):
        for kind, chain in (("key", False), ("predicted", True)):
            # No frame is kept: a robot holds one or two, and a page that is touched for the first time costs more than
            # the coding of its numbers.
            passed = [
                (len(each.sent.data), each.encode_s * 1e3, each.decode_s * 1e3)
                for each in series(codec, index, frames, chain=chain)
            ]
            sizes, encode_ms, decode_ms = zip(*passed[1:], strict=True)  # a chain begins with a key frame
            both = [a + b for a, b in zip(encode_ms, decode_ms, strict=True)]
            times = [f"{np.median(each):.2f}" for each in (encode_ms, decode_ms, both)]
            times.append(f"{np.percentile(both, 90):.2f}")
            rows.append([f"{kind} {rung.name}", f"{rung.grouping.columns}", f"{np.median(sizes):,.0f}", *times])
    title = report.heading(
        "Codec: coefficients of 256 rows to bytes and back, CPU milliseconds of one thread",
        f"python -m benchmarks.codec.speed -n {n}",
        packages=("numpy",),
        seed=seed,
        n=n,
    )
    header = ("rung", "columns", "bytes p50", "encode p50", "decode p50", "both p50", "both p90")
    return title + "\n" + report.table(header, rows)


def _times(n: int, call: Callable[[], object]) -> list[str]:
    """Median and 90th percentile of `n` calls, in milliseconds."""
    samples = []
    for _ in range(n + _WARM_UP):
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e3)
    return [f"{value:.2f}" for value in np.percentile(samples[_WARM_UP:], (50, 90))]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=50, help="calls a scheme and direction")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    print(measure(arguments.n, arguments.seed))
    print(measure_codec(arguments.n, arguments.seed))


if __name__ == "__main__":
    main()
