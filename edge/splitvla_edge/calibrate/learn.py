"""From embeddings of calibration frames to codec tables; `measure` has what each rung then costs and keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from splitvla_edge.calibrate.basis import covariance_of, learn_basis, mean_of, patch_weights, step_for
from splitvla_edge.calibrate.rates import TableCounts, columns_for, learn_rung
from splitvla_shared.codec.sensitivity import Sensitivity
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.errors import ObservationError
from splitvla_shared.nouns import FloatArray

Clip = Sequence[FloatArray]  # embeddings (patches, dim), in order of time

# Signal to quantisation noise of each rung, in dB, of what varies between frames and patches.
LADDER_DB = (54, 51, 47, 42, 36, 30, 25, 21, 17, 13, 9)
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
    sensitivity: Sensitivity | None = None,
) -> CodecTables:
    """Tables from clips of embeddings, float32 (patches, dim) each.

    columns: the most coefficients that the encoder will emit. Raises ObservationError with fewer than 8 frames.
    """
    frames = [frame for clip in clips for frame in clip]
    if len(frames) < _LEAST_FRAMES:
        raise ObservationError(f"{len(frames)} frames to learn from; record at least {_LEAST_FRAMES}, better hundreds")
    patches, dim = frames[0].shape
    mean = mean_of(frames)
    weights = patch_weights(sensitivity, patches)
    factors = np.ones((1, 1), np.float32) if weights is None else weights[:, None]

    def varying(frame: FloatArray) -> FloatArray:
        return np.asarray((frame - mean) * factors, np.float32)

    covariance = covariance_of(map(varying, frames), dim)
    basis = learn_basis(covariance, min(columns, dim), sensitivity)
    coefficients = [[varying(frame) @ basis.analysis for frame in clip] for clip in clips]
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
        patch_weights=weights,
    )


def sealed(tables: CodecTables) -> tuple[CodecTables, bytes]:
    """The tables as they are read back from their file, with its bytes."""
    data = tables.to_bytes()
    return dataclasses.replace(CodecTables.from_bytes(data)), data
