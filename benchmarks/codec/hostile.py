"""What damaged and forged payloads cost: every one a CodecError, its CPU time, and the memory that stays.

    python -m benchmarks.codec.hostile [--minutes 1] [--seed SEED]

One frame of 256 patches with 504 columns, as a key frame and as a difference, and one embedding in every plain scheme.
First each kind of damage for itself, then random damage for so many minutes: flipped, cut, doubled and spliced bytes,
half of it under a checksum that is right, as who means harm would send it. Ends with an error when a decoder does
anything but give a finite tensor, raise CodecError, or ask for a key frame.
"""

from __future__ import annotations

import argparse
import resource
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import report
from benchmarks.codec.drawn import drawn_codec, drawn_coefficients
from splitvla_shared.codec import SCHEMES, decode, encode
from splitvla_shared.codec.transform import Binding, Coded, TransformCodec
from splitvla_shared.errors import CodecError, KeyFrameNeeded
from splitvla_shared.nouns import EncodedTensor, Scheme

REFUSALS = (CodecError, KeyFrameNeeded)
_SESSION = 7
_PLAIN_SHAPE = (16, 1024)
_TAIL = 4  # bytes of a checksum


@dataclass(frozen=True, slots=True)
class Target:
    """A decoder with a good payload of its own. open: decodes, to a finite tensor or a CodecError.

    sealed: the payload with another body under a right checksum; None where the checksum is the compressor's.
    """

    name: str
    good: bytes
    open: Callable[[bytes], None]
    sealed: Callable[[bytes], bytes] | None


def targets(seed: int) -> list[Target]:
    codec = drawn_codec(seed)
    first, second = drawn_coefficients(codec, 2, seed)
    key = codec.encode(first, 0, Binding(_SESSION, 1))
    delta = codec.encode(second, 0, Binding(_SESSION, 2), key.reference)
    patches = np.random.default_rng(seed).normal(size=_PLAIN_SHAPE).astype(np.float32)
    plain = [_plain(scheme, encode(patches, scheme).data) for scheme in SCHEMES]
    return [_transform(codec, key, key), _transform(codec, delta, key), *plain]


def damages(target: Target, other: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Kinds of damage, and the payloads of each."""
    good = target.good
    yield (
        "a flipped bit in every 16th byte",
        [good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :] for at in range(0, len(good), 16)],
    )
    yield "cut, every 64th length", [good[:length] for length in range(0, len(good), 64)]
    yield "4 MiB of zeros", [bytes(1 << 22)]
    yield "twice", [good + good]
    yield "another payload", [other]
    if target.sealed is not None:
        body = good[:-_TAIL]
        lengths = 1 if target.name == Scheme.KLT.name else 5  # where the number of words stands
        yield "another rung, right checksum", [target.sealed(bytes([rung]) + body[1:]) for rung in range(1, 256)]
        yield "lying lengths, right checksum", [target.sealed(body[:lengths] + b"\xff" * 3 + body[lengths + 3 :])]
        yield (
            "noise, right checksum",
            [
                target.sealed(body[: lengths + 3] + np.random.default_rng(at).bytes(len(body) - lengths - 3))
                for at in range(50)
            ],
        )


def cost(target: Target, payloads: Sequence[bytes]) -> list[float]:
    """CPU milliseconds of each payload that was refused. Raises SystemExit when one was taken for good."""
    spent = []
    for payload in payloads:
        began = time.thread_time()
        try:
            target.open(payload)
        except REFUSALS:
            spent.append((time.thread_time() - began) * 1e3)
        else:
            raise SystemExit(f"{target.name}: {len(payload)} damaged bytes were taken for a payload")
    return spent


def fuzz(found: Sequence[Target], minutes: float, seed: int) -> tuple[int, int, float]:
    """How many payloads were tried, how many were (legally) decoded, and the longest CPU ms of one refused."""
    rng = np.random.default_rng(seed)
    tried = decoded = 0
    longest_ms = 0.0
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        target = found[int(rng.integers(len(found)))]
        payload = _mutated(target, found[int(rng.integers(len(found)))].good, rng)
        tried += 1
        began = time.thread_time()
        try:
            target.open(payload)
            decoded += 1
        except REFUSALS:
            longest_ms = max(longest_ms, (time.thread_time() - began) * 1e3)
    return tried, decoded, longest_ms


def _mutated(target: Target, other: bytes, rng: np.random.Generator) -> bytes:
    body = bytearray(target.good[:-_TAIL] if target.sealed else target.good)
    for _ in range(int(rng.integers(1, 5))):
        body[int(rng.integers(len(body)))] = int(rng.integers(256))
    kind = rng.integers(4)
    if kind == 1:
        del body[int(rng.integers(len(body))) :]
    elif kind == 2:
        at = int(rng.integers(len(body)))
        body[at : at + 64] = other[:64]
    elif kind == 3:
        body += rng.bytes(int(rng.integers(1, 64)))
    if target.sealed is not None and rng.integers(2):
        return target.sealed(bytes(body))
    return bytes(body)


def _transform(codec: TransformCodec, coded: Coded, key: Coded) -> Target:
    binding = Binding(_SESSION, coded.reference.sequence)
    sequence = coded.reference_sequence

    def sealed(body: bytes) -> bytes:
        crc = zlib.crc32(body, codec._bound(coded.scheme, binding, sequence or 0))
        return body + crc.to_bytes(_TAIL, "little")

    def opened(data: bytes) -> None:
        got = codec.decode(data, coded.scheme, binding, key.reference if sequence else None, sequence)
        _require_finite(codec.reconstruct(got))

    return Target(coded.scheme.name, coded.data, opened, sealed)


def _plain(scheme: Scheme, good: bytes) -> Target:
    def sealed(body: bytes) -> bytes:
        return body + zlib.crc32(body).to_bytes(_TAIL, "little")

    def opened(data: bytes) -> None:
        _require_finite(decode(EncodedTensor(scheme, _PLAIN_SHAPE, data)))

    return Target(scheme.name, good, opened, None if scheme.name.endswith("ZSTD") else sealed)


def _require_finite(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    if not np.isfinite(values).all():
        raise SystemExit("a decoder gave numbers that are not finite")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="of random damage (1)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    found = targets(arguments.seed)
    for target in found:
        target.open(target.good)  # also warms up
    before_mb = _peak_mb()
    rows = []
    for target in found[:2]:
        for kind, payloads in damages(target, found[2].good):
            spent = cost(target, payloads)
            rows.append([target.name, kind, f"{len(spent):,}", f"{np.median(spent):.2f}", f"{max(spent):.2f}"])
    tried, decoded, longest_ms = fuzz(found, arguments.minutes, arguments.seed)
    title = report.heading(
        "Codec: damaged payloads, CPU milliseconds until the CodecError",
        f"python -m benchmarks.codec.hostile --minutes {arguments.minutes:g}",
        packages=("numpy", "zstandard"),
        seed=arguments.seed,
        n=tried,
    )
    print(title + "\n" + report.table(("scheme", "damage", "payloads", "p50", "max"), rows))
    print(
        f"Random damage: {tried:,} payloads over {len(found)} decoders, each refused or, {decoded:,} of them under a "
        f"right checksum, another finite tensor; the longest refusal took {longest_ms:.1f} ms. "
        f"Peak memory rose by {_peak_mb() - before_mb:.0f} MB."
    )


if __name__ == "__main__":
    main()
