"""Bytes against tokens: every rung of the KLT codec beside JPEG, WebP and H.264 of the same frames.

    python -m benchmarks.codec BUNDLES CLIPS... [--plot FILE]

BUNDLES holds edge/ and cloud/. A clip is a video, a folder of images, or a folder with images.npy (n, S, S, 3); its
name may say the task (`...-button`), for which TASKS has the instruction. Every third clip is measured on, the codec
learns from the others. A rung's embedding is decoded and given to the backbone; a picture is decoded and run through
the whole model. Both are compared with what the model says of the unharmed frame.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from safetensors import safe_open

from benchmarks import report
from benchmarks.frames import read_frames
from splitvla_cloud.backbone import Backbone
from splitvla_cloud.prompt import Prompt
from splitvla_edge.calibrate.learn import learn, sealed
from splitvla_edge.encoder import OnnxEncoder
from splitvla_edge.images import to_square
from splitvla_edge.robots.metaworld.tasks import TASKS
from splitvla_shared.bundle import open_bundle
from splitvla_shared.codec import decode, encode
from splitvla_shared.codec.model import Reference
from splitvla_shared.codec.transform import Binding, TransformCodec
from splitvla_shared.nouns import FloatArray, Image, Scheme
from splitvla_shared.spec import Resize

_OTHERWISE = "pick up the object"
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Frames as the model sees them, uint8 (S, S, 3), their exact embeddings, and the tokens of those."""

    instruction: str
    frames: list[Image]
    embeddings: list[FloatArray]
    tokens: list[Tokens]


@dataclass(frozen=True, slots=True)
class Row:
    """One setting over all measured frames. bin_error: mean distance of a token from the exact one, in bins."""

    name: str
    sizes: list[int]
    agreement: float
    bin_error: float
    encode_ms: float | None = None
    decode_ms: float | None = None
    sqnr_db: float | None = None

    def cells(self) -> list[str]:
        median, p95 = np.percentile(self.sizes, (50, 95))
        times = [f"{value:.1f}" if value is not None else "" for value in (self.encode_ms, self.decode_ms)]
        sqnr = "" if self.sqnr_db is None else f"{self.sqnr_db:.1f}"
        return [
            self.name,
            f"{median:,.0f}",
            f"{p95:,.0f}",
            f"{self.agreement:.2%}",
            f"{self.bin_error:.3f}",
            sqnr,
            *times,
        ]


class Model:
    """Both halves of a split model, in one process."""

    def __init__(self, bundles: Path) -> None:
        edge, cloud = open_bundle(bundles / "edge", "edge"), open_bundle(bundles / "cloud", "cloud")
        self.spec, self.cloud = edge.spec, cloud.path
        self._encoder = OnnxEncoder(edge, 1)
        self._backbone = Backbone.load(cloud, "fp32", "cpu")
        self._prompt = Prompt.load(cloud.path, cloud.spec)

    def square(self, frame: Image) -> Image:
        size = self.spec.image_size
        return frame if frame.shape == (size, size, 3) else to_square(frame, size, Resize.NAIVE)

    def embed(self, frame: Image) -> FloatArray:
        return self._encoder.embed(frame)

    def tokens(self, instruction: str, patches: FloatArray) -> Tokens:
        ids = self._prompt.ids(instruction)
        return np.array(self._backbone.full_answer(ids, patches, self.spec.max_action_dims))

    def sensitivity(self) -> FloatArray:
        """What the first layer's keys and values make of an error behind its norm: float32 (dim, dim)."""
        with safe_open(self.cloud / "model.safetensors", "pt") as file:
            gain = file.get_tensor("model.layers.0.input_layernorm.weight").float().numpy()
            parts = [file.get_tensor(f"model.layers.0.self_attn.{name}_proj.weight").float().numpy() for name in "kv"]
        weights = [part * gain for part in parts]
        return np.asarray(sum(weight.T @ weight for weight in weights), np.float32)


def read_clip(model: Model, path: Path, most: int) -> Clip:
    """At most `most` frames of a clip, none of which repeats the one before."""
    source = np.load(path / "images.npy", mmap_mode="r") if (path / "images.npy").is_file() else read_frames(path)
    frames: list[Image] = []
    for frame in source:
        square = model.square(np.ascontiguousarray(frame))
        if not frames or (square != frames[-1]).any():
            frames.append(square)
        if len(frames) == most:
            break
    named = next((TASKS[name] for name in sorted(TASKS, key=len, reverse=True) if path.name.endswith(name)), None)
    instruction = named.instruction if named else _OTHERWISE
    embeddings = [model.embed(frame) for frame in frames]
    return Clip(instruction, frames, embeddings, [model.tokens(instruction, each) for each in embeddings])


def judge(model: Model, clips: Sequence[Clip], found: Sequence[Sequence[FloatArray]]) -> tuple[float, float]:
    """Token agreement and mean bin error of embeddings that stand for the clips' own."""
    differences = np.concatenate(
        [
            np.abs(model.tokens(clip.instruction, patches) - exact)
            for clip, series in zip(clips, found, strict=True)
            for patches, exact in zip(series, clip.tokens, strict=True)
        ]
    )
    return float((differences == 0).mean()), float(differences.mean())


def plain(model: Model, clips: Sequence[Clip]) -> Iterator[Row]:
    for scheme in (Scheme.BF16, Scheme.INT8, Scheme.INT4):
        coded = [[encode(patches, scheme) for patches in clip.embeddings] for clip in clips]
        found = [[decode(each) for each in series] for series in coded]
        yield Row(scheme.name.lower(), [len(e.data) for s in coded for e in s], *judge(model, clips, found))


def rungs(model: Model, clips: Sequence[Clip], codec: TransformCodec, label: str, *, chain: bool) -> Iterator[Row]:
    """chain: each frame against the one before, as an undisturbed link gives; otherwise all are key frames."""
    tables = codec.tables
    channel_mean = tables.mean.mean(axis=0, dtype=np.float64).astype(np.float32)
    for index, rung in enumerate(tables.rungs):
        sizes, found, encode_s, decode_s = [], [], [], []
        noise = signal = 0.0
        for clip in clips:
            reference: Reference | None = None
            series: list[FloatArray] = []
            for sequence, patches in enumerate(clip.embeddings, 1):
                values = np.asarray((patches - channel_mean) @ tables.analysis)
                binding, began = Binding(0, sequence), time.thread_time()
                coded = codec.encode(values, index, binding, reference)
                sent = time.thread_time()
                got = codec.decode(coded.data, coded.scheme, binding, reference, coded.reference_sequence)
                decode_s.append(time.thread_time() - sent)
                encode_s.append(sent - began)
                series.append(codec.reconstruct(got))
                noise += float(np.square(series[-1] - patches).sum())
                signal += float(np.square(patches - tables.mean).sum())
                if not (chain and sequence == 1):  # a chain's first frame is a key frame, which stands in its own row
                    sizes.append(len(coded.data))
                reference = got if chain else None
            found.append(series)
        yield Row(
            f"{label} {rung.name} ({rung.grouping.columns} columns)",
            sizes,
            *judge(model, clips, found),
            float(np.median(encode_s)) * 1e3,
            float(np.median(decode_s)) * 1e3,
            10 * float(np.log10(signal / noise)),
        )


def pictures(model: Model, clips: Sequence[Clip]) -> Iterator[Row]:
    for kind, quality in (("JPEG", 75), ("JPEG", 90), ("JPEG", 95), ("WebP", 75), ("WebP", 90)):
        saved = [[_saved(frame, kind, quality) for frame in clip.frames] for clip in clips]
        found = [[model.embed(_opened(data)) for data in series] for series in saved]
        sizes = [len(data) for series in saved for data in series]
        yield Row(f"{kind} q{quality}", sizes, *judge(model, clips, found))


def videos(model: Model, clips: Sequence[Clip]) -> Iterator[Row]:
    """H.264 without look-ahead, as a live stream has it; bytes are a clip's, shared among its frames."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError:
        print("H.264 is left out: pip install imageio-ffmpeg")
        return
    for quality in (28, 23, 18):
        coded = [_h264(get_ffmpeg_exe(), clip.frames, quality) for clip in clips]
        found = [[model.embed(frame) for frame in frames] for _, frames in coded]
        sizes = [size for size, frames in coded for _ in frames]
        yield Row(f"H.264 crf {quality}", sizes, *judge(model, clips, found))


def _saved(frame: Image, kind: str, quality: int) -> bytes:
    stream = io.BytesIO()
    PilImage.fromarray(frame).save(stream, kind, quality=quality)
    return stream.getvalue()


def _opened(data: bytes) -> Image:
    return np.asarray(PilImage.open(io.BytesIO(data)).convert("RGB"))


def _h264(program: str, frames: Sequence[Image], quality: int) -> tuple[int, list[Image]]:
    """Bytes a frame, and the decoded frames."""
    height, width, _ = frames[0].shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "5"]
    options = ["-c:v", "libx264", "-preset", "veryfast", "-tune", "zerolatency", "-crf", str(quality), "-g", "1000"]
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "clip.h264")
        quiet = [program, "-y", "-loglevel", "error"]
        pixels = b"".join(frame.tobytes() for frame in frames)
        subprocess.run([*quiet, *raw, "-i", "-", *options, "-pix_fmt", "yuv420p", file], input=pixels, check=True)
        size = Path(file).stat().st_size
        decoded = subprocess.run(
            [*quiet, "-i", file, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
        ).stdout
    return size // len(frames), list(np.frombuffer(decoded, np.uint8).reshape(len(frames), height, width, 3))


def draw(rows: Sequence[Row], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for prefix in ("key", "weighted", "predicted", "JPEG", "WebP", "H.264", "bf16", "int"):
        chosen = [row for row in rows if row.name.startswith(prefix)]
        if chosen:
            sizes = [float(np.median(row.sizes)) for row in chosen]
            axes.plot(sizes, [100 * row.agreement for row in chosen], "o-", label=prefix)
    axes.set(xscale="log", xlabel="bytes a frame (median)", ylabel="token agreement, %")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--learn-frames", type=int, default=24, help="of each clip that is learned from (24)")
    parser.add_argument("--frames", type=int, default=12, help="of each clip that is measured on (12)")
    parser.add_argument("--hold-out", type=int, default=3, metavar="N", help="every Nth clip is measured on (3)")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args(argv)
    model = Model(arguments.bundles)
    held = [path for index, path in enumerate(arguments.clips) if index % arguments.hold_out == 0]
    learned = [
        read_clip(model, path, arguments.learn_frames).embeddings for path in arguments.clips if path not in held
    ]
    clips = [read_clip(model, path, arguments.frames) for path in held]
    codec = TransformCodec(sealed(learn(learned))[0])
    weighted = TransformCodec(sealed(learn(learned, sensitivity=model.sensitivity()))[0])
    rows = [
        *plain(model, clips),
        *rungs(model, clips, codec, "key", chain=False),
        *rungs(model, clips, weighted, "weighted key", chain=False),
        *rungs(model, clips, codec, "predicted", chain=True),
        *pictures(model, clips),
        *videos(model, clips),
    ]
    count = sum(len(clip.frames) for clip in clips)
    title = report.heading(
        f"Codec: {model.spec.name}, {model.spec.patches} x {model.spec.embed_dim}, frames not learned from",
        "python -m benchmarks.codec BUNDLES CLIPS...",
        packages=("numpy", "onnxruntime", "pillow"),
        seed=0,
        n=count,
    )
    header = (
        "setting",
        "bytes p50",
        "p95",
        "token agreement",
        "bin error",
        "SQNR dB",
        "encode CPU ms",
        "decode CPU ms",
    )
    print(title + "\n" + report.table(header, [row.cells() for row in rows]))
    if arguments.plot:
        draw(rows, arguments.plot)


if __name__ == "__main__":
    main()
