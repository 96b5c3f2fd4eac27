"""The framework's own overhead: everything of a frame's way that is neither encoder nor backbone, over loopback.

A real server process, the real edge path in this process, real WidowX frames. Overhead = total - encode - prefill -
decode of the same frame, each a duration taken on one machine's clock. Two models of random weights: one of the tests'
size (128-wide embeddings) and one with OpenVLA-7B's wire (4096-wide embeddings), both too small to act.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.frames import INSTRUCTION, read_frames
from benchmarks.processes import ServerProcess
from benchmarks.tiny_checkpoint import Sizes, write_tiny_checkpoint
from splitvla_cloud.split import split
from splitvla_edge import EdgePolicy
from splitvla_shared.nouns import Image, Observation, Scheme, StageTimes

MODELS = {
    "128": Sizes(),
    "4096": Sizes(llm_dim=4096, llm_mlp=256, llm_layers=1, llm_heads=32),
}
SCHEMES = (Scheme.BF16, Scheme.INT8, Scheme.INT4, Scheme.INT8_ZSTD)
_WARM_UP = 10


def overhead_ms(stages: StageTimes) -> float:
    return stages.total_ms - stages.encode_ms - stages.prefill_ms - stages.decode_ms


def _samples(policy: EdgePolicy, frames: list[Image], n: int) -> tuple[list[StageTimes], int]:
    stages: list[StageTimes] = []
    wire_bytes = 0
    for step in range(n + _WARM_UP):
        image = frames[step % len(frames)]
        observation = Observation(step, (image,), INSTRUCTION, time.monotonic())
        chunk = policy.act(observation, deadline_s=10.0)
        if step >= _WARM_UP:
            stages.append(chunk.stages)
            wire_bytes = chunk.wire_bytes
    return stages, wire_bytes


def measure(n: int, seed: int) -> str:
    """The Markdown table."""
    frames = read_frames()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for width, sizes in MODELS.items():
            checkpoint, bundles = Path(folder) / f"checkpoint-{width}", Path(folder) / f"bundles-{width}"
            write_tiny_checkpoint(checkpoint, seed=seed, sizes=sizes)
            split(checkpoint, bundles)
            with ServerProcess(bundles / "cloud") as server:
                address = server.wait_ready()
                for scheme in SCHEMES:
                    with EdgePolicy.connect(
                        bundles / "edge", address, unnorm_key="widowx_tiny", scheme=scheme
                    ) as policy:
                        stages, wire_bytes = _samples(policy, frames, n)
                    rows.append([width, scheme.name, f"{wire_bytes:,}", *_cells(stages)])
    title = report.heading(
        "Framework overhead: a frame's way without encoder and backbone, over loopback",
        f"python -m benchmarks.overhead --frames {n}",
        packages=("grpcio", "onnxruntime", "torch"),
        seed=seed,
        n=n,
    )
    header = ("embed_dim", "scheme", "bytes", "overhead p50 ms", "p99", "of which: resize", "codec", "gRPC", "the rest")
    return title + "\n" + report.table(header, rows)


def _cells(stages: list[StageTimes]) -> list[str]:
    p50, p99, _ = report.percentiles([overhead_ms(stage) for stage in stages])
    resize = [stage.preprocess_ms for stage in stages]
    codec = [stage.compress_ms + stage.decode_payload_ms for stage in stages]
    network = [stage.network_ms for stage in stages]
    parts = zip(stages, resize, codec, network, strict=True)
    rest = [overhead_ms(stage) - sum(part) for stage, *part in parts]
    medians = [report.percentiles(samples)[0] for samples in (resize, codec, network, rest)]
    return [f"{value:.2f}" for value in (p50, p99, *medians)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(measure(arguments.frames, arguments.seed))


if __name__ == "__main__":
    main()
