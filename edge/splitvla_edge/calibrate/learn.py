"""From embeddings of calibration frames to codec tables, and what each rung then costs and keeps on frames held out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitvla_edge.calibrate.basis import learn_basis, moments_of, step_for
from splitvla_edge.calibrate.rates import TableCounts, columns_for, learn_rung
from splitvla_shared.codec import decode, encode
from splitvla_shared.codec.model import Reference
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.codec.transform import Binding, TransformCodec
from splitvla_shared.errors import ObservationError
from splitvla_shared.nouns import FloatArray, Scheme
from splitvla_shared.rungs import MEASURED_SCHEMES, RungCost

Clip = Sequence[FloatArray]  # embeddings (patches, dim), in order of time

# Signal to quantisation noise of each rung, in dB, of what varies between frames and patches.
LADDER_DB = (36, 30, 25, 21, 17, 13, 9, 6)
MOST_COLUMNS = 512
_LEAST_FRAMES = 8
_HOLD_OUT = 4  # one frame in so many is measured on, not learned from


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


def measure(
    codec: TransformCodec, clips: Sequence[Clip], sensitivity: FloatArray | None = None
) -> tuple[RungCost, ...]:
    """What each rung costs and keeps on these clips, frame by frame as a robot would send them."""
    tables = codec.tables
    coefficients = [[tables.coefficients(frame) for frame in clip] for clip in clips]
    return tuple(
        _measure_rung(codec, index, clips, coefficients, _Errors(tables.mean, sensitivity))
        for index in range(len(tables.rungs))
    )


def measure_plain(
    mean: FloatArray, clips: Sequence[Clip], sensitivity: FloatArray | None = None
) -> tuple[RungCost, ...]:
    """The same of the schemes that need no tables, for comparison and for the ladder's top. mean: of each patch."""
    return tuple(_measure_scheme(scheme, clips, _Errors(mean, sensitivity)) for scheme in MEASURED_SCHEMES)


@dataclass(slots=True)
class _Errors:
    """Sums over frames of signal and error, each as it is and as the backbone sees it. Mutable: the sums."""

    mean: FloatArray
    sensitivity: FloatArray | None
    signal: float = 0.0
    noise: float = 0.0
    seen_signal: float = 0.0
    seen_noise: float = 0.0

    def add(self, frame: FloatArray, found: FloatArray) -> None:
        signal, error = frame - self.mean, found - frame
        self.signal += float(np.square(signal, dtype=np.float64).sum())
        self.noise += float(np.square(error, dtype=np.float64).sum())
        if self.sensitivity is not None:
            self.seen_signal += float(np.vdot(signal @ self.sensitivity, signal))
            self.seen_noise += float(np.vdot(error @ self.sensitivity, error))

    def cost(
        self, name: str, columns: int, sizes: tuple[list[int], list[int]], seconds: tuple[list[float], list[float]]
    ) -> RungCost:
        """sizes: of key and of predicted frames. seconds: of encoding and of decoding."""
        keys, predicted = sizes
        encode_s, decode_s = seconds
        return RungCost(
            name=name,
            columns=columns,
            key_bytes=int(np.median(keys)),
            key_bytes_p95=int(np.percentile(keys, 95)),
            predicted_bytes=int(np.median(predicted)) if predicted else None,
            predicted_bytes_p95=int(np.percentile(predicted, 95)) if predicted else None,
            sqnr_db=_decibels(self.signal, self.noise),
            encode_ms=round(float(np.median(encode_s)) * 1e3, 2),
            decode_ms=round(float(np.median(decode_s)) * 1e3, 2),
            seen_db=None if self.sensitivity is None else _decibels(self.seen_signal, self.seen_noise),
        )


def _decibels(signal: float, noise: float) -> float:
    return round(float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))), 2)


def _measure_rung(
    codec: TransformCodec, rung: int, clips: Sequence[Clip], coefficients: Sequence[Clip], errors: _Errors
) -> RungCost:
    keys, predicted, encode_s, decode_s = [], [], [], []
    for clip, series in zip(clips, coefficients, strict=True):
        reference: Reference | None = None
        for sequence, (frame, values) in enumerate(zip(clip, series, strict=True), 1):
            keys.append(len(codec.encode(values, rung, Binding(0, sequence)).data))
            began = time.perf_counter()
            coded = codec.encode(values, rung, Binding(0, sequence), reference)
            sent = time.perf_counter()
            found = codec.decode(coded.data, coded.scheme, Binding(0, sequence), reference, coded.reference_sequence)
            patches = codec.reconstruct(found)
            decode_s.append(time.perf_counter() - sent)
            encode_s.append(sent - began)
            if reference is not None:
                predicted.append(len(coded.data))
            reference = found
            errors.add(frame, patches)
    tables = codec.tables.rungs[rung]
    return errors.cost(tables.name, tables.grouping.columns, (keys, predicted), (encode_s, decode_s))


def _measure_scheme(scheme: Scheme, clips: Sequence[Clip], errors: _Errors) -> RungCost:
    sizes, encode_s, decode_s = [], [], []
    for frame in (frame for clip in clips for frame in clip):
        began = time.perf_counter()
        coded = encode(frame, scheme)
        sent = time.perf_counter()
        patches = decode(coded)
        decode_s.append(time.perf_counter() - sent)
        encode_s.append(sent - began)
        sizes.append(len(coded.data))
        errors.add(frame, patches)
    return errors.cost(scheme.name.lower(), errors.mean.shape[1], (sizes, []), (encode_s, decode_s))


def _centred(frame: FloatArray, mean: FloatArray) -> FloatArray:
    return np.asarray(frame - mean, np.float32)


def sealed(tables: CodecTables) -> tuple[CodecTables, bytes]:
    """The tables as they are read back from their file, with its bytes."""
    data = tables.to_bytes()
    return dataclasses.replace(CodecTables.from_bytes(data)), data
