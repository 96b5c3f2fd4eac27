"""From embeddings of calibration frames to codec tables, and what each rung then costs and keeps on frames held out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitvla_edge.calibrate.basis import learn_basis, moments_of, step_for
from splitvla_edge.calibrate.rates import TableCounts, columns_for, learn_rung
from splitvla_shared.codec.model import Reference
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.codec.transform import Binding, TransformCodec
from splitvla_shared.errors import ObservationError
from splitvla_shared.nouns import FloatArray

Clip = Sequence[FloatArray]  # embeddings (patches, dim), in order of time

# Signal to quantisation noise of each rung, in dB, of what varies between frames and patches.
LADDER_DB = (36, 30, 25, 21, 17, 13, 9, 6)
MOST_COLUMNS = 512
_LEAST_FRAMES = 8
_HOLD_OUT = 4  # one frame in so many is measured on, not learned from


@dataclass(frozen=True, slots=True)
class RungCost:
    """What a rung gave on held-out frames: payload bytes of key and of predicted frames, error, and time on this CPU.

    predicted_*: None where no held-out frame follows another.
    """

    name: str
    columns: int
    key_bytes: int
    key_bytes_p95: int
    predicted_bytes: int | None
    predicted_bytes_p95: int | None
    sqnr_db: float
    encode_ms: float
    decode_ms: float


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    tables: CodecTables
    costs: tuple[RungCost, ...]


def hold_out(clips: Sequence[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Clips to learn from and to measure on: every fourth clip, or the last quarter of one where there are few."""
    if len(clips) >= _HOLD_OUT:
        return (
            [clip for index, clip in enumerate(clips) if index % _HOLD_OUT != _HOLD_OUT - 1],
            [clip for index, clip in enumerate(clips) if index % _HOLD_OUT == _HOLD_OUT - 1],
        )
    cuts = [len(clip) - max(1, len(clip) // _HOLD_OUT) for clip in clips]
    return (
        [clip[:cut] for clip, cut in zip(clips, cuts, strict=True) if cut],
        [clip[cut:] for clip, cut in zip(clips, cuts, strict=True)],
    )


def learn(
    clips: Sequence[Clip],
    *,
    columns: int = MOST_COLUMNS,
    ladder_db: Sequence[float] = LADDER_DB,
    sensitivity: FloatArray | None = None,
) -> CodecTables:
    """Tables from clips of embeddings, float32 (patches, dim) each.

    columns: the most coefficients that the encoder will emit. Raises ObservationError with fewer than 8 frames.
    """
    frames = [frame for clip in clips for frame in clip]
    if len(frames) < _LEAST_FRAMES:
        raise ObservationError(f"{len(frames)} frames to learn from; record at least {_LEAST_FRAMES}, better hundreds")
    patches, dim = frames[0].shape
    moments = moments_of(frames, patches, dim)
    mean = moments.mean()
    basis = learn_basis(moments.covariance(mean), min(columns, dim), sensitivity)
    coefficients = [[_centred(frame, mean) @ basis.analysis for frame in clip] for clip in clips]
    most = basis.analysis.shape[1]
    counts = TableCounts()
    rungs = []
    for wanted_db in ladder_db:
        step = step_for(basis.variances, wanted_db)
        rung, sequences = learn_rung(
            f"db{wanted_db:g}", step, columns_for(basis.variances[:most], step, most), coefficients
        )
        counts.add(rung, sequences)
        rungs.append(rung)
    widest = max(rung.grouping.columns for rung in rungs)
    analysis = np.ascontiguousarray(basis.analysis[:, :widest])
    same = basis.synthesis is basis.analysis
    return CodecTables(
        mean=mean,
        analysis=analysis,
        synthesis=analysis if same else np.ascontiguousarray(basis.synthesis[:, :widest]),
        counts=counts.tables(),
        rungs=tuple(rungs),
    )


def measure(codec: TransformCodec, clips: Sequence[Clip]) -> tuple[RungCost, ...]:
    """What each rung costs and keeps on these clips, frame by frame as a robot would send them."""
    tables = codec.tables
    mean, analysis = tables.channel_mean, tables.analysis
    coefficients = [[np.asarray((frame - mean) @ analysis, np.float32) for frame in clip] for clip in clips]
    return tuple(_measure_rung(codec, index, clips, coefficients) for index in range(len(tables.rungs)))


def _measure_rung(codec: TransformCodec, rung: int, clips: Sequence[Clip], coefficients: Sequence[Clip]) -> RungCost:
    keys, predicted, encode_s, decode_s = [], [], [], []
    signal = noise = 0.0
    for clip, series in zip(clips, coefficients, strict=True):
        reference: Reference | None = None
        for sequence, (frame, values) in enumerate(zip(clip, series, strict=True), 1):
            keys.append(len(codec.encode(values, rung, Binding(0, sequence)).data))
            began = time.perf_counter()
            coded = codec.encode(values, rung, Binding(0, sequence), reference)
            sent = time.perf_counter()
            found = codec.decode(coded.data, coded.scheme, Binding(0, sequence), reference, coded.reference_sequence)
            decode_s.append(time.perf_counter() - sent)
            encode_s.append(sent - began)
            if reference is not None:
                predicted.append(len(coded.data))
            reference = found
            error = codec.reconstruct(found) - frame
            noise += float(np.square(error, dtype=np.float64).sum())
            signal += float(np.square(frame - codec.tables.mean, dtype=np.float64).sum())
    return RungCost(
        name=codec.tables.rungs[rung].name,
        columns=codec.tables.rungs[rung].grouping.columns,
        key_bytes=int(np.median(keys)),
        key_bytes_p95=int(np.percentile(keys, 95)),
        predicted_bytes=int(np.median(predicted)) if predicted else None,
        predicted_bytes_p95=int(np.percentile(predicted, 95)) if predicted else None,
        sqnr_db=round(float(10 * np.log10(signal / max(noise, 1e-30))), 2),
        encode_ms=round(float(np.median(encode_s)) * 1e3, 2),
        decode_ms=round(float(np.median(decode_s)) * 1e3, 2),
    )


def _centred(frame: FloatArray, mean: FloatArray) -> FloatArray:
    return np.asarray(frame - mean, np.float32)


def sealed(tables: CodecTables) -> tuple[CodecTables, bytes]:
    """The tables as they are read back from their file, with its bytes."""
    data = tables.to_bytes()
    return dataclasses.replace(CodecTables.from_bytes(data)), data
