"""What each rung costs and keeps on frames that it was not learned from, frame by frame as a robot would send them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitvla_edge.calibrate.learn import Clip
from splitvla_edge.calibrate.series import series
from splitvla_shared.codec import decode, encode
from splitvla_shared.codec.sensitivity import Sensitivity
from splitvla_shared.codec.transform import TransformCodec
from splitvla_shared.nouns import FloatArray, Scheme
from splitvla_shared.rungs import MEASURED_SCHEMES, RungCost


def measure(
    codec: TransformCodec, clips: Sequence[Clip], sensitivity: Sensitivity | None = None
) -> tuple[RungCost, ...]:
    """What each rung costs and keeps on these clips, frame by frame as a robot would send them."""
    tables = codec.tables
    coefficients = [[tables.coefficients(frame) for frame in clip] for clip in clips]
    return tuple(
        _measure_rung(codec, index, clips, coefficients, _Errors(tables.mean, sensitivity))
        for index in range(len(tables.rungs))
    )


def measure_plain(
    mean: FloatArray, clips: Sequence[Clip], sensitivity: Sensitivity | None = None
) -> tuple[RungCost, ...]:
    """The same of the schemes that need no tables, for comparison and for the ladder's top. mean: of each patch."""
    return tuple(_measure_scheme(scheme, clips, _Errors(mean, sensitivity)) for scheme in MEASURED_SCHEMES)


@dataclass(slots=True)
class _Errors:
    """Sums over frames of signal and error, each as it is and as the backbone sees it. Mutable: the sums."""

    mean: FloatArray
    sensitivity: Sensitivity | None
    signal: float = 0.0
    noise: float = 0.0
    seen_signal: float = 0.0
    seen_noise: float = 0.0

    def add(self, frame: FloatArray, found: FloatArray) -> None:
        signal, error = frame - self.mean, found - frame
        self.signal += float(np.square(signal, dtype=np.float64).sum())
        self.noise += float(np.square(error, dtype=np.float64).sum())
        if self.sensitivity is not None:
            self.seen_signal += _seen(signal, self.sensitivity)
            self.seen_noise += _seen(error, self.sensitivity)

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


def _seen(values: FloatArray, sensitivity: Sensitivity) -> float:
    """What the backbone makes of (patches, dim), up to a factor."""
    each = np.einsum("pd,pd->p", values @ sensitivity.directions, values, dtype=np.float64)
    return float(each.sum() if sensitivity.patches is None else each @ sensitivity.patches)


def _decibels(signal: float, noise: float) -> float:
    return round(float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))), 2)


def _measure_rung(
    codec: TransformCodec, rung: int, clips: Sequence[Clip], coefficients: Sequence[Clip], errors: _Errors
) -> RungCost:
    keys, predicted, encode_s, decode_s = list[int](), list[int](), list[float](), list[float]()
    for clip, values in zip(clips, coefficients, strict=True):
        keys += [len(each.sent.data) for each in series(codec, rung, values, chain=False)]
        for number, (frame, each) in enumerate(zip(clip, series(codec, rung, values, chain=True), strict=True)):
            began = time.thread_time()
            patches = codec.reconstruct(each.got)
            decode_s.append(each.decode_s + time.thread_time() - began)
            encode_s.append(each.encode_s)
            errors.add(frame, patches)
            if number:
                predicted.append(len(each.sent.data))
    tables = codec.tables.rungs[rung]
    return errors.cost(tables.name, tables.grouping.columns, (keys, predicted), (encode_s, decode_s))


def _measure_scheme(scheme: Scheme, clips: Sequence[Clip], errors: _Errors) -> RungCost:
    sizes, encode_s, decode_s = [], [], []
    for frame in (frame for clip in clips for frame in clip):
        began = time.thread_time()
        coded = encode(frame, scheme)
        sent = time.thread_time()
        patches = decode(coded)
        decode_s.append(time.thread_time() - sent)
        encode_s.append(sent - began)
        sizes.append(len(coded.data))
        errors.add(frame, patches)
    return errors.cost(scheme.name.lower(), errors.mean.shape[1], (sizes, []), (encode_s, decode_s))
