"""The embedder: whoever asks, a frame is prepared once, and the encoder runs once for what is asked of it."""

from __future__ import annotations

import itertools

import numpy as np

from splitvla_edge.embedder import Embedder
from splitvla_shared.nouns import FloatArray, Image
from tests.codec_tables import COLUMNS, ROWS, formula_tables

TABLES = formula_tables()
IMAGE = np.zeros((4, 4, 3), np.uint8)


class Counting:
    """Counts its runs."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    def embed(self, image: Image) -> FloatArray:
        self.runs.append("patches")
        return TABLES.mean + np.float32(1)

    def coefficients(self, image: Image) -> FloatArray:
        self.runs.append("coefficients")
        return np.zeros((ROWS, COLUMNS), np.float32)


def embedder(encoder: Counting, *, shared: bool = False) -> Embedder:
    ticks = itertools.count()
    embed = Embedder(lambda image: image, encoder, lambda: float(next(ticks)), TABLES)
    if shared:
        embed.share()
    return embed


def test_shared_the_same_frame_is_encoded_once() -> None:
    encoder = Counting()
    embed = embedder(encoder, shared=True)
    first, second = embed((IMAGE,)), embed((IMAGE,))
    assert first.patches[0] is second.patches[0]
    assert encoder.runs == ["patches"]
    assert (first.preprocess_s, second.preprocess_s) == (1.0, 0.0)


def test_a_picture_that_a_camera_wrote_into_the_same_array_is_another_frame() -> None:
    encoder = Counting()
    embed = embedder(encoder, shared=True)
    buffer = IMAGE.copy()
    embed((buffer,))
    buffer[0, 0, 0] = 255
    embed((buffer,))
    assert encoder.runs == ["patches", "patches"]


def test_unless_it_is_shared_every_call_encodes() -> None:
    encoder = Counting()
    embed = embedder(encoder)
    embed((IMAGE,))
    embed((IMAGE,))
    assert encoder.runs == ["patches", "patches"]


def test_coefficients_alone_need_no_patches() -> None:
    encoder = Counting()
    seen = embedder(encoder)((IMAGE,), patches=False, coefficients=True)
    assert encoder.runs == ["coefficients"]
    assert not seen.patches
    assert seen.coefficients[0].shape == (ROWS, COLUMNS)


def test_where_both_are_wanted_coefficients_are_made_of_the_patches() -> None:
    encoder = Counting()
    seen = embedder(encoder)((IMAGE,), coefficients=True)
    assert encoder.runs == ["patches"]
    expected = (TABLES.mean + np.float32(1) - TABLES.mean.mean(axis=0)) @ TABLES.analysis
    np.testing.assert_allclose(seen.coefficients[0], expected, rtol=1e-5, atol=1e-4)
