"""Frames drawn from a law, for what depends on sizes and on no camera: 256 patches, 504 columns in the best rung."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from splitvla_edge.calibrate.learn import learn, sealed
from splitvla_shared.codec.transform import TransformCodec
from splitvla_shared.nouns import FloatArray

PATCHES, DIM, COLUMNS = 256, 640, 512
_FALL = 1.15  # the deviation of the n-th coefficient is n to the power of minus this
_STAYS = 0.9  # of a coefficient, from one frame to the next
_CLIPS, _FRAMES = 3, 12
_LADDER_DB = (36, 30, 25, 21, 17, 13, 9, 6)  # the first has as many columns as there are


def drawn_codec(seed: int) -> TransformCodec:
    """Tables learned from drawn clips."""
    clips = [list(_clip(_FRAMES, seed + index)) for index in range(_CLIPS)]
    return TransformCodec(sealed(learn(clips, columns=COLUMNS, ladder_db=_LADDER_DB))[0])


def drawn_coefficients(codec: TransformCodec, n: int, seed: int) -> list[FloatArray]:
    """`n` successive frames as the encoder gives them, float32 (PATCHES, columns)."""
    return [codec.tables.coefficients(frame) for frame in _clip(n, 1000 + seed)]


def _clip(n: int, seed: int) -> Iterator[FloatArray]:
    rng = np.random.default_rng(seed)
    scales = 10 * np.arange(1, DIM + 1) ** -_FALL
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))
    state = rng.laplace(size=(PATCHES, DIM))
    for _ in range(n):
        state = _STAYS * state + np.sqrt(1 - _STAYS**2) * rng.laplace(size=(PATCHES, DIM))
        yield np.asarray((state * scales) @ basis, np.float32)
