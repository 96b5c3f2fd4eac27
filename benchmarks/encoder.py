"""The encoder at openvla-7b's full size, random weights: PyTorch against the encoders of a bundle, on this CPU.

    python -m benchmarks.encoder [--preset tiny|half|7b] [-n ROUNDS] [--work DIR]

Each runs in a process of its own, all of them take turns round by round, and the ratio is that of the same round, so
that other work on the machine weighs on all alike. Random weights have no outlying channels: times, sizes and memory
carry over to a real checkpoint, agreement does not; `split` measures that and writes it into the bundle.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from benchmarks import report
from benchmarks.checkpoint import PRESETS, write_checkpoint
from splitvla_cloud.split.calibration_frames import calibration_frames
from splitvla_cloud.split.checkpoint import Checkpoint
from splitvla_cloud.split.encoder_export import export_encoder, load_edge_model
from splitvla_cloud.split.encoder_parity import Parity, compare
from splitvla_cloud.split.reduced_graph import write_float16, write_int8
from splitvla_cloud.split.smoothing import calibrate, rescaled
from splitvla_shared.encoders import ENCODER_FILES, EXACT_INT8_SUMS, FP16, FP32, INT8
from splitvla_shared.nouns import FloatArray, Image

T = TypeVar("T")
TORCH = "torch fp32"
ENGINES = (TORCH, FP32, FP16, INT8)
_FRAMES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """times_ms: one a round. rss_bytes: what loading and running added. parity: None for the one compared with."""

    times_ms: tuple[float, ...]
    rss_bytes: int
    file_bytes: int
    parity: Parity | None


def prepare(work: Path, preset: str, seed: int) -> None:
    """Write the checkpoint and the three encoders below `work`."""
    write_checkpoint(work / "model", seed=seed, sizes=dataclasses.replace(PRESETS[preset], llm_layers=1))
    source = Checkpoint.open(work / "model")
    tensors, exact = source.vision_tensors, work / ENCODER_FILES[FP32]
    for name, task in (
        ("export", lambda: export_encoder(source.vision, tensors, exact)),
        ("fp16", lambda: write_float16(exact, tensors, work / ENCODER_FILES[FP16], _ignore)),
    ):
        _announced(name, task)
    frames = calibration_frames(None, source.vision.image_size)[:_FRAMES]
    calibration = _announced("calibration", lambda: calibrate(source.vision, tensors, frames, _ignore))
    smooth = rescaled(tensors, calibration.factors)
    _announced("int8", lambda: write_int8(exact, smooth, work / ENCODER_FILES[INT8], _ignore))


def measure(work: Path, rounds: int) -> dict[str, Measured]:
    """All engines in turn, `rounds` times, after one run each that warms up."""
    with ExitStack() as stack:
        engines = {name: stack.enter_context(_engine(name, work)) for name in ENGINES}
        times: dict[str, list[float]] = {name: [] for name in ENGINES}
        for index in range(-1, rounds):
            for name, ask in engines.items():
                elapsed_ms = float(ask(f"run {max(index, 0) % _FRAMES}"))
                if index >= 0:
                    times[name].append(elapsed_ms)
        rss = {name: int(ask("rss")) for name, ask in engines.items()}
        for ask in engines.values():
            ask("save")
    answers = {name: np.load(_answers(work, name)) for name in ENGINES}
    return {
        name: Measured(
            tuple(times[name]),
            rss[name],
            _file_bytes(work, name),
            None if name == TORCH else compare(answers[TORCH], answers[name]),
        )
        for name in ENGINES
    }


def table(results: dict[str, Measured], preset: str, rounds: int, seed: int) -> str:
    """The Markdown table under its heading."""
    base = np.array(results[TORCH].times_ms)
    rows = []
    for name, found in results.items():
        times = np.array(found.times_ms)
        ratio = float(np.median(base / times))
        parity = found.parity
        cosines = (
            ["-", "-", "-"]
            if parity is None
            else [f"{parity.cosine_mean:.5f}", f"{parity.cosine_min:.5f}", f"{parity.relative_error:.2%}"]
        )
        rows.append([
            name if name == TORCH else f"onnx {name}",
            f"{np.median(times):.0f}", f"{times.min():.0f} to {times.max():.0f}", f"{ratio:.2f}x",
            f"{found.file_bytes / 1e6:,.0f}", f"{found.rss_bytes / 1e6:,.0f}", *cosines,
        ])  # fmt: skip
    heading = report.heading(
        f"Encoder: {preset} towers and projector, random weights, one image",
        f"python -m benchmarks.encoder --preset {preset} -n {rounds}",
        packages=("torch", "onnxruntime"),
        seed=seed,
        n=rounds,
    )
    header = (
        "encoder",
        "median ms",
        "spread",
        "against torch",
        "file MB",
        "RSS added MB",
        "cosine mean",
        "min",
        "error",
    )
    return heading + "\n" + report.table(header, rows)


# --- one engine in a process of its own -------------------------------------------------------------------------------


@contextmanager
def _engine(name: str, work: Path) -> Iterator[Callable[[str], str]]:
    """A function that sends the engine a line and returns its answer."""
    command = [sys.executable, "-m", "benchmarks.encoder", "--engine", name, "--work", str(work)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(line: str) -> str:
            print(line, file=stdin, flush=True)
            answer = stdout.readline().strip()
            if not answer:
                raise SystemExit(f"the {name} engine ended with {process.wait()}")
            return answer

        yield ask
        process.stdin.close()


def _serve_engine(name: str, work: Path, asked: IO[str]) -> None:
    source = Checkpoint.open(work / "model")
    before = _rss_bytes()
    run = _torch_run(source) if name == TORCH else _onnx_run(work / ENCODER_FILES[name])
    frames = calibration_frames(None, source.vision.image_size)[:_FRAMES]
    for line in asked:
        verb, _, argument = line.strip().partition(" ")
        if verb == "run":
            started = time.perf_counter()
            run(frames[int(argument)])
            print((time.perf_counter() - started) * 1e3, flush=True)
        elif verb == "rss":
            print(_rss_bytes() - before, flush=True)
        else:
            np.save(_answers(work, name), np.stack([run(frame) for frame in frames]))
            print("saved", flush=True)


def _torch_run(source: Checkpoint) -> Callable[[Image], FloatArray]:
    import torch

    model = load_edge_model(source.vision, source.vision_tensors)

    def run(image: Image) -> FloatArray:
        with torch.inference_mode():
            patches: FloatArray = model(torch.from_numpy(image)[None])[0].numpy()
        return patches

    return run


def _onnx_run(path: Path) -> Callable[[Image], FloatArray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as the robot runs it
    options.add_session_config_entry(*EXACT_INT8_SUMS)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Image) -> FloatArray:
        patches: FloatArray = session.run(["patches"], {"image": image[None]})[0][0]
        return patches

    return run


def _rss_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(row.split()[1]) * 1024 for row in status.splitlines() if row.startswith("VmRSS:"))


def _answers(work: Path, name: str) -> Path:
    return work / f"answers-{name.replace(' ', '-')}.npy"


def _file_bytes(work: Path, name: str) -> int:
    if name == TORCH:
        return 0
    graph = work / ENCODER_FILES[name]
    return sum(file.stat().st_size for file in (graph, graph.with_name(graph.name + ".data")) if file.is_file())


def _announced(name: str, task: Callable[[], T]) -> T:
    started = time.perf_counter()
    result = task()
    print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return result


def _ignore(count: int) -> None:
    """The Progress of someone who does not watch."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="7b")
    parser.add_argument("-n", type=int, default=7, help="rounds")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="where 9 GB are written for the time of the run (/tmp)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)  # the processes that this one starts
    arguments = parser.parse_args()
    if arguments.engine:
        _serve_engine(arguments.engine, arguments.work, sys.stdin)
        return
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        prepare(Path(folder), arguments.preset, arguments.seed)
        print(table(measure(Path(folder), arguments.n), arguments.preset, arguments.n, arguments.seed))


if __name__ == "__main__":
    main()
