"""The KLT schemes: transform coefficients as whole numbers, entropy-coded, alone or against an earlier frame.

A frame is coefficients (rows, columns) over a step, rounded to whole numbers. Against a reference the *numbers* are
predicted from the reference's numbers, so that both machines hold the same ones bit for bit: nothing can drift, however
long the chain. docs/wire.md has the bytes.

Rules of this file:
 - Numbers, contexts and tokens are integers. Floats decide only which numbers the robot sends.
 - A payload is checked whole, against the session and frame it was made for, before anything in it is believed.
 - What a reference is, its identifier and checksum say; without both there is no difference to apply it to.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitvla_shared.codec import rans
from splitvla_shared.codec.bits import Bits, gather, gather_even, spread, spread_even
from splitvla_shared.codec.model import Reference, RungModel, departure, predicted_numbers
from splitvla_shared.codec.tables import EXCESS_CONTEXT, ROW_CONTEXT, CodecTables
from splitvla_shared.codec.tokens import MAX_MAGNITUDE, Detokenizer, Int32, tokenize
from splitvla_shared.errors import CodecError, KeyFrameNeeded
from splitvla_shared.nouns import FloatArray, Scheme

# More numbers than this share that their tokens can't say: a frame unlike any that was calibrated with. So few columns
# that it costs nothing are sent all the same.
_EXCESS_SHARE, _EXCESSES_ALLOWED = 2, 4096
_BOUND = struct.Struct("<8sBBQQQ")
_CRC_BYTES, _WORDS_BYTES, _CHECKSUM_BYTES = 4, 3, 4
_LEAST_BYTES = 1 + _WORDS_BYTES + _CRC_BYTES
_LOWEST_EXPONENT, _EXPONENT_BITS = rans.SEED_BITS, 4


@dataclass(frozen=True, slots=True)
class Binding:
    """The frame that a payload belongs to: it opens for no other session, sequence or camera."""

    session: int
    sequence: int
    camera: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """A payload and the frame's numbers as a reference for the next. reference_sequence: None for a key frame."""

    scheme: Scheme
    data: bytes
    reference: Reference
    reference_sequence: int | None = None


class TransformCodec:
    """Codes with one set of tables. Holds no state between calls; safe to call from several threads."""

    def __init__(self, tables: CodecTables) -> None:
        self.tables = tables
        self._rungs = tuple(RungModel.of(rung) for rung in tables.rungs)
        # What the robot subtracts: the mean of each patch's coefficients, less what the graph has subtracted already.
        channel_mean = tables.mean.mean(axis=0, dtype=np.float64)
        means = (tables.mean - channel_mean) @ tables.analysis.astype(np.float64)
        self._patch_means = np.asarray(means, np.float32)
        # A step is of a patch: finer where an error counts more. Of one row where all are alike.
        weights = np.ones((1, 1), np.float32) if tables.patch_weights is None else tables.patch_weights[:, None]
        self._finenesses = tuple(weights * np.float32(1 / rung.step) for rung in tables.rungs)
        self._steps = tuple(np.float32(rung.step) / weights for rung in tables.rungs)
        # A number is at most 12 bits of token and 20 plain ones, a row's level at most 12 bits; a lane's state 31 bits.
        rows = tables.shape[0]
        most_numbers = max(rows * (rung.grouping.columns + 1) for rung in tables.rungs)
        self._most_bytes = 16 + 4 * most_numbers + 8 * max(rung.lanes for rung in tables.rungs)
        self._tag = bytes.fromhex(tables.sha256)[:8] if tables.sha256 else bytes(8)

    def encode(
        self, coefficients: FloatArray, rung: int, binding: Binding, reference: Reference | None = None
    ) -> Coded:
        """coefficients: float32 (rows, at least the rung's columns), less the mean over patches, as the graph gives.

        The reference is used where it has this rung and makes the frame smaller. Raises CodecError for coefficients
        that are not finite or beyond what the tables can say.
        """
        prepared = self._rungs[rung]
        rows, columns = self.tables.shape[0], prepared.columns
        if coefficients.shape[0] != rows or coefficients.shape[1] < columns or coefficients.dtype != np.float32:
            raise CodecError(f"coefficients are {coefficients.dtype} {coefficients.shape}; expected {rows} x {columns}")
        scaled = coefficients[:, :columns] - self._patch_means[:, :columns]
        scaled *= self._finenesses[rung]
        if not float(np.abs(scaled).max()) <= MAX_MAGNITUDE:  # also false for NaN
            raise CodecError("a coefficient is not finite or far beyond the calibrated frames; send this frame exact")
        nearest = np.rint(scaled).astype(np.int32)
        numbers = residual = departure(scaled, nearest)
        used = None
        if reference is not None and reference.rung == rung:
            prediction = predicted_numbers(reference.numbers, prepared.gains)
            difference = departure(scaled, nearest, prediction)
            if int(np.abs(difference).sum()) < int(np.abs(numbers).sum()):
                numbers, residual, used = prediction + difference, difference, reference
        body = self._write(residual, rung, used)
        scheme = Scheme.KLT if used is None else Scheme.KLT_DELTA
        crc = zlib.crc32(body, self._bound(scheme, binding, used.sequence if used else 0))
        return Coded(
            scheme,
            body + crc.to_bytes(_CRC_BYTES, "little"),
            Reference.of(binding.sequence, rung, numbers),
            used.sequence if used else None,
        )

    def check(self, data: bytes, scheme: Scheme, binding: Binding, reference_sequence: int | None = None) -> int:
        """The rung of a payload that is whole and was made for this frame. Raises CodecError otherwise."""
        if (scheme is Scheme.KLT) != (reference_sequence is None):
            raise CodecError(f"a {scheme.name} payload {'with' if scheme is Scheme.KLT else 'without'} a reference")
        if not _LEAST_BYTES <= len(data) <= self._most_bytes:
            raise CodecError(
                f"the payload has {len(data)} bytes; a {scheme.name} payload of this model has "
                f"{_LEAST_BYTES}..{self._most_bytes}"
            )
        crc = int.from_bytes(data[-_CRC_BYTES:], "little")
        body = memoryview(data)[:-_CRC_BYTES]
        if zlib.crc32(body, self._bound(scheme, binding, reference_sequence or 0)) != crc:
            raise CodecError("the payload's CRC-32 is wrong: damaged on the way, or made for another frame or session")
        if data[0] >= len(self._rungs):
            raise CodecError(f"the payload is of rung {data[0]}, this model has {len(self._rungs)}")
        return data[0]

    def decode(
        self,
        data: bytes,
        scheme: Scheme,
        binding: Binding,
        reference: Reference | None = None,
        reference_sequence: int | None = None,
    ) -> Reference:
        """The frame's numbers, as a reference for the next.

        reference: what this side holds under `reference_sequence`, the one that the message names; None where it holds
        none. Raises KeyFrameNeeded when the reference is absent or another, CodecError for bytes that no encoder wrote.
        """
        rung = self.check(data, scheme, binding, reference_sequence)
        body = memoryview(data)[1:-_CRC_BYTES]
        if scheme is Scheme.KLT:
            return Reference.of(binding.sequence, rung, _checked(self._read(body, rung, None)))
        checksum, body = int.from_bytes(body[:_CHECKSUM_BYTES], "little"), body[_CHECKSUM_BYTES:]
        if reference is None or reference.sequence != reference_sequence or reference.checksum != checksum:
            raise KeyFrameNeeded(f"frame {binding.sequence}: its reference, frame {reference_sequence}, is not here")
        if reference.rung != rung:
            raise CodecError(f"the payload is of rung {rung}, its reference of rung {reference.rung}")
        numbers = self._read(body, rung, reference)
        numbers += predicted_numbers(reference.numbers, self._rungs[rung].gains)
        return Reference.of(binding.sequence, rung, _checked(numbers))

    def reconstruct(self, frame: Reference) -> FloatArray:
        """float32 (patches, dim), finite. Raises CodecError when it is not."""
        coefficients = frame.numbers.astype(np.float32)
        coefficients *= self._steps[frame.rung]
        patches = np.asarray(coefficients @ self.tables.synthesis[:, : coefficients.shape[1]].T, np.float32)
        patches += self.tables.mean
        if not np.isfinite(patches).all():
            raise CodecError("the payload reconstructs to numbers that are not finite; the sender is broken")
        return patches

    def _bound(self, scheme: Scheme, binding: Binding, reference_sequence: int) -> int:
        """CRC-32 of what is not sent but must be the same on both sides."""
        fields = (self._tag, scheme, binding.camera, binding.session, binding.sequence, reference_sequence)
        return zlib.crc32(_BOUND.pack(*fields))

    def _write(self, residual: Int32, rung: int, reference: Reference | None) -> bytes:
        prepared = self._rungs[rung]
        lanes = prepared.rung.lanes
        sizes = np.abs(residual)
        tokens = tokenize(residual, sizes, prepared.rung.grouping)
        if len(tokens.excess) > _most_excesses(residual.size):
            raise CodecError("the frame is unlike those that were calibrated with; send it exact, or calibrate again")
        levels = prepared.levels(sizes, predicted=reference is not None)
        contexts = prepared.contexts(levels, reference)
        carried = lanes * rans.SEED_BITS
        seed_bits = np.zeros(carried, np.uint8)
        seed_bits[: len(tokens.bits)] = tokens.bits[:carried]
        state, words = rans.encode(
            self.tables.probabilities,
            (
                rans.Pass(levels, np.full(len(levels), ROW_CONTEXT)),
                rans.Pass(tokens.first.reshape(-1), contexts.reshape(-1)),
                rans.Pass(tokens.excess, _excess_contexts(len(tokens.excess), tokens.pair_excesses)),
            ),
            lanes,
            gather_even(seed_bits, rans.SEED_BITS),
        )
        exponents = _bit_length(state)
        plain = np.concatenate((spread(state, exponents), tokens.bits[carried:]))
        return b"".join(
            (
                bytes((rung,)),
                b"" if reference is None else reference.checksum.to_bytes(_CHECKSUM_BYTES, "little"),
                len(words).to_bytes(_WORDS_BYTES, "little"),
                words.astype("<u2").tobytes(),
                np.packbits(spread_even(exponents - _LOWEST_EXPONENT, _EXPONENT_BITS)).tobytes(),
                np.packbits(plain).tobytes(),
            )
        )

    def _read(self, body: memoryview, rung: int, reference: Reference | None) -> Int32:
        prepared = self._rungs[rung]
        grouping = prepared.rung.grouping
        words, state, plain = _parts(body, prepared.rung.lanes)
        decoder = rans.Decoder(self.tables.probabilities, state, words)
        rows = self.tables.shape[0]
        levels = decoder.take(np.full(rows, ROW_CONTEXT))
        first = decoder.take(prepared.contexts(levels, reference).reshape(-1)).reshape(rows, grouping.groups)
        numbers = Detokenizer(first, grouping)
        if numbers.excesses > _most_excesses(rows * grouping.columns):
            raise CodecError("the payload has more excesses than an encoder writes; the sender is broken")
        excess = decoder.take(_excess_contexts(numbers.excesses, numbers.pair_excesses))
        seeds = decoder.finish()
        needed = numbers.bits_needed(excess)
        carried = spread_even(seeds, rans.SEED_BITS)
        if not 0 <= len(plain) - max(0, needed - len(carried)) < 8:
            raise CodecError(f"the payload has {len(plain)} plain bits, its tokens ask for {needed - len(carried)}")
        bits = np.concatenate((carried, plain))
        if bits[needed:].any():
            raise CodecError("the payload's padding is not zero; the sender is broken")
        return numbers.numbers(bits[:needed])


def _checked(numbers: Int32) -> Int32:
    """As decoded: an excess lies on top of what its token says, a difference on top of a prediction."""
    if int(np.abs(numbers).max()) > MAX_MAGNITUDE:
        raise CodecError("the payload's numbers leave the range that an encoder keeps to")
    return numbers


def _most_excesses(numbers: int) -> int:
    return max(numbers // _EXCESS_SHARE, _EXCESSES_ALLOWED)


def _excess_contexts(count: int, pairs: int) -> npt.NDArray[np.int16]:
    contexts = np.full(count, EXCESS_CONTEXT + 1, np.int16)
    contexts[:pairs] = EXCESS_CONTEXT
    return contexts


def _bit_length(state: rans.UInt32) -> npt.NDArray[np.int64]:
    """Place of the leading one: 15..30."""
    return np.frexp(state.astype(np.float64))[1].astype(np.int64) - 1


def _parts(body: memoryview, lanes: int) -> tuple[npt.NDArray[np.uint16], rans.UInt32, Bits]:
    """Words, states and plain bits. Raises CodecError where the sizes do not add up."""
    count = int.from_bytes(body[:_WORDS_BYTES], "little")
    words_end = _WORDS_BYTES + 2 * count
    exponents_end = words_end + (lanes + 1) // 2
    if exponents_end > len(body):
        raise CodecError(f"the payload declares {count} words, which its {len(body)} bytes can't hold")
    words = np.frombuffer(body, "<u2", count, _WORDS_BYTES)
    nibbles, used = np.unpackbits(np.frombuffer(body[words_end:exponents_end], np.uint8)), _EXPONENT_BITS * lanes
    if nibbles[used:].any():
        raise CodecError("the payload's padding is not zero; the sender is broken")
    exponents = gather_even(nibbles[:used], _EXPONENT_BITS) + _LOWEST_EXPONENT
    plain = np.unpackbits(np.frombuffer(body[exponents_end:], np.uint8))
    used = int(exponents.sum())
    if used > len(plain):
        raise CodecError(f"the payload ends within its coder states, after {len(plain)} of {used} bits")
    state = (gather(plain[:used], exponents) + (1 << exponents)).astype(np.uint32)
    return words, state, plain[used:]
