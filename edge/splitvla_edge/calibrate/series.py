"""Frames through one rung of the codec, there and back, as key frames or each against the one before, with times."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from splitvla_shared.codec.model import Reference
from splitvla_shared.codec.transform import Binding, Coded, TransformCodec
from splitvla_shared.nouns import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """A frame as it was sent and as it arrived; seconds of this thread, from coefficients to bytes and to numbers."""

    sent: Coded
    got: Reference
    encode_s: float
    decode_s: float


def series(codec: TransformCodec, rung: int, frames: Iterable[FloatArray], *, chain: bool) -> Iterator[Passed]:
    """frames: coefficients. chain: each against the one before, as an undisturbed link gives; otherwise all keys."""
    reference: Reference | None = None
    for sequence, coefficients in enumerate(frames, 1):
        binding, began = Binding(0, sequence), time.thread_time()
        sent = codec.encode(coefficients, rung, binding, reference)
        between = time.thread_time()
        got = codec.decode(sent.data, sent.scheme, binding, reference, sent.reference_sequence)
        yield Passed(sent, got, between - began, time.thread_time() - between)
        reference = got if chain else None
