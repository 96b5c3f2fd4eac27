"""One row a setting: payload schemes, rungs of the codec, pictures and videos of the same frames."""

from __future__ import annotations

import io
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PilImage

from benchmarks.codec.clips import Clip, Model
from splitvla_edge.calibrate.series import series
from splitvla_shared.codec import decode, encode
from splitvla_shared.codec.transform import TransformCodec
from splitvla_shared.nouns import FloatArray, Image, Scheme

BASES = ("energy", "first layer", "answers")  # what a codec's basis is weighted by
PICTURES = (("JPEG", 75), ("JPEG", 90), ("JPEG", 95), ("WebP", 75), ("WebP", 90))
HEADER = (
    "setting",
    "bytes p50",
    "p95",
    "token agreement",
    "within a bin",
    "bin error",
    "SQNR dB",
    "encode CPU ms",
    "decode CPU ms",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One setting over all measured frames.

    agreement, within_bin: share of tokens that are the exact ones, and that are at most one bin away. bin_error: mean
    distance of a token from the exact one, in bins.
    """

    name: str
    sizes: list[int]
    agreement: float
    within_bin: float
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
            f"{self.within_bin:.2%}",
            f"{self.bin_error:.3f}",
            sqnr,
            *times,
        ]


def judge(model: Model, clips: Sequence[Clip], found: Sequence[Sequence[FloatArray]]) -> tuple[float, float, float]:
    """Token agreement, share within a bin, and mean bin error of embeddings that stand for the clips' own."""
    differences = np.concatenate(
        [
            np.abs(model.tokens(clip.instruction, patches) - exact)
            for clip, series in zip(clips, found, strict=True)
            for patches, exact in zip(series, clip.tokens, strict=True)
        ]
    )
    return float((differences == 0).mean()), float((differences <= 1).mean()), float(differences.mean())


def plain(model: Model, clips: Sequence[Clip]) -> Iterator[Row]:
    for scheme in (Scheme.BF16, Scheme.INT8, Scheme.INT4):
        coded = [[encode(patches, scheme) for patches in clip.embeddings] for clip in clips]
        found = [[decode(each) for each in series] for series in coded]
        yield Row(scheme.name.lower(), [len(e.data) for s in coded for e in s], *judge(model, clips, found))


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """What one rung made of some clips. found: the embeddings that arrive, clip by clip."""

    name: str
    sizes: list[int]
    found: list[list[FloatArray]]
    encode_ms: float
    decode_ms: float
    sqnr_db: float


def coded(
    codec: TransformCodec, index: int, clips: Sequence[Sequence[FloatArray]], label: str, *, chain: bool
) -> Coded:
    """clips: embeddings. chain: each frame against the one before, as an undisturbed link gives; otherwise all keys.

    A chain's first frame is a key frame, which stands in its own row.
    """
    tables, rung = codec.tables, codec.tables.rungs[index]
    sizes, found, encode_s, decode_s = list[int](), list[list[FloatArray]](), list[float](), list[float]()
    noise = signal = 0.0
    for clip in clips:
        arrived: list[FloatArray] = []
        passed = series(codec, index, map(tables.coefficients, clip), chain=chain)
        for number, (patches, each) in enumerate(zip(clip, passed, strict=True)):
            decode_s.append(each.decode_s)
            encode_s.append(each.encode_s)
            arrived.append(codec.reconstruct(each.got))
            noise += float(np.square(arrived[-1] - patches).sum())
            signal += float(np.square(patches - tables.mean).sum())
            if number or not chain:
                sizes.append(len(each.sent.data))
        found.append(arrived)
    return Coded(
        f"{label} {rung.name} ({rung.grouping.columns} columns)",
        sizes,
        found,
        float(np.median(encode_s)) * 1e3,
        float(np.median(decode_s)) * 1e3,
        10 * float(np.log10(signal / noise)),
    )


def rungs(model: Model, clips: Sequence[Clip], codec: TransformCodec, label: str, *, chain: bool) -> Iterator[Row]:
    """All rungs of the tables; see `coded`."""
    for index in range(len(codec.tables.rungs)):
        each = coded(codec, index, [clip.embeddings for clip in clips], label, chain=chain)
        found = judge(model, clips, each.found)
        yield Row(each.name, each.sizes, *found, each.encode_ms, each.decode_ms, each.sqnr_db)


def pictures(model: Model, clips: Sequence[Clip]) -> Iterator[Row]:
    for kind, quality in PICTURES:
        files = [[saved(frame, kind, quality) for frame in clip.frames] for clip in clips]
        found = [[model.embed(_opened(data)) for data in series] for series in files]
        sizes = [len(data) for series in files for data in series]
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


def saved(frame: Image, kind: str, quality: int) -> bytes:
    """The file's bytes."""
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
