"""What a server pays to make an embedding of a frame's numbers, for one robot and for several that come at once.

    [OPENBLAS_NUM_THREADS=1] python -m benchmarks.codec.expand [-n 100]

Openvla-7b's size, a random basis. The product is numpy's, by as many threads as BLAS was told; the server decodes on
two threads of its own, which are the callers here.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks import report
from benchmarks.folded_encoder import random_tables
from splitvla_shared.codec.model import Reference
from splitvla_shared.codec.transform import TransformCodec

PATCHES, DIM = 256, 4096
_COLUMNS, _CALLERS = (512, 196), (1, 2)


def measure(codec: TransformCodec, callers: int, n: int) -> list[str]:
    """Milliseconds of a call, as its caller waits; calls a second of all; CPU milliseconds of a call."""
    frame = Reference.of(1, 0, np.ones((PATCHES, codec.tables.columns), np.int32))

    def call(_: int) -> float:
        began = time.perf_counter()
        codec.reconstruct(frame)
        return (time.perf_counter() - began) * 1e3

    call(0)
    with ThreadPoolExecutor(callers) as pool:
        began, spent = time.perf_counter(), time.process_time()
        waits = list(pool.map(call, range(n)))
        seconds, spent = time.perf_counter() - began, time.process_time() - spent
    p50, p95 = np.percentile(waits, (50, 95))
    return [f"{callers}", f"{p50:.1f}", f"{p95:.1f}", f"{n / seconds:.0f}", f"{spent / n * 1e3:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=100, help="frames (100)")
    arguments = parser.parse_args()
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "all")
    rows = []
    for columns in _COLUMNS:
        codec = TransformCodec(random_tables(PATCHES, DIM, columns))
        rows += [[threads, f"{columns}", *measure(codec, callers, arguments.n)] for callers in _CALLERS]
    title = report.heading(
        f"Codec: from numbers to an embedding of {PATCHES} x {DIM}, milliseconds",
        f"python -m benchmarks.codec.expand -n {arguments.n}",
        packages=("numpy",),
        seed=0,
        n=arguments.n,
    )
    header = ("BLAS threads", "columns", "callers", "p50", "p95", "frames a second", "CPU ms")
    print(title + "\n" + report.table(header, rows))


if __name__ == "__main__":
    main()
