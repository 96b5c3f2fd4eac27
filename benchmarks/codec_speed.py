"""How long each payload scheme takes, and how many bytes it gives, on one OpenVLA camera's embedding (256 x 4096).

The tensor is drawn, not recorded: Laplace elements with 16 channels a hundred times larger, as residual streams have.
Bytes of the raw schemes don't depend on the values; those of the zstd schemes do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks import report
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
        f"python -m benchmarks.codec_speed -n {n}",
        packages=("numpy", "zstandard"),
        seed=seed,
        n=n,
    )
    header = ("scheme", "encode p50 ms", "p90", "decode p50 ms", "p90", "bytes", "relative error")
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


if __name__ == "__main__":
    main()
