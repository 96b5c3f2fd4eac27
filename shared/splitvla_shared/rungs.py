"""The payload ladder: the settings a frame may be sent with, best first, and what each is expected to cost and keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitvla_shared.codec import max_payload_bytes, parse_scheme
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.errors import BundleError, ConfigError
from splitvla_shared.nouns import Scheme

# What every bundle can send without calibration, in falling order of bytes.
_PLAIN = (Scheme.BF16, Scheme.INT8, Scheme.INT4)
# The first rung of a calibrated bundle: one tensor, two ways to write it.
EXACT = "exact"
_EXACT_SCHEMES = (Scheme.BF16, Scheme.BF16_ZSTD)
# The plain schemes that calibration measures beside the codec's rungs.
MEASURED_SCHEMES = (*_EXACT_SCHEMES, Scheme.INT8, Scheme.INT4)
CODEC_KEY = "codec"  # of an edge bundle's own part of spec.json


@dataclass(frozen=True, slots=True)
class Rung:
    """One entry of the ladder.

    wire_bytes: of one camera's payload, expected. agreement: expected share of action tokens that are those of the
    best rung, None where nobody has measured it. codec_rung: index into the codec tables' rungs where scheme is KLT;
    wire_bytes is then a key frame's.
    """

    name: str
    scheme: Scheme
    wire_bytes: int
    agreement: float | None = None
    codec_rung: int | None = None


@dataclass(frozen=True, slots=True)
class RungCost:
    """What a rung or plain scheme gave on calibration's held-out frames: payload bytes, error, time on that machine.

    predicted_*: of frames after another one, None where there were none or the scheme has no prediction. seen_db: the
    error as the backbone's first layer sees it, None where the bundle has no sensitivity. agreement: see Rung.
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
    seen_db: float | None = None
    agreement: float | None = None

    @property
    def quality_db(self) -> float:
        return self.sqnr_db if self.seen_db is None else self.seen_db


def plain_ladder(top: Scheme, shape: tuple[int, int]) -> tuple[Rung, ...]:
    """`top`, then the plain schemes that are smaller. shape: (patches, embed_dim) of one camera."""
    first = max_payload_bytes(top, shape)
    below = [scheme for scheme in _PLAIN if max_payload_bytes(scheme, shape) < first]
    return tuple(Rung(scheme.name.lower(), scheme, max_payload_bytes(scheme, shape)) for scheme in (top, *below))


def bundled_ladder(
    top: Scheme, shape: tuple[int, int], tables: CodecTables | None, costs: Sequence[RungCost]
) -> tuple[Rung, ...]:
    """The ladder of a bundle: `top`, the plain schemes that keep more than the codec does, the codec's rungs.

    Strictly falling bytes. The default top, bf16, is called "exact" and written with zstd where that is smaller.
    tables: None gives the plain ladder. Raises BundleError when the costs do not speak of a rung of the tables.
    """
    plain = plain_ladder(top, shape)
    if tables is None:
        return plain
    known = {cost.name: cost for cost in costs}
    missing = [rung.name for rung in tables.rungs if rung.name not in known]
    if missing:
        raise BundleError(f"spec.json has no costs of the codec's rung {missing[0]!r}; calibrate again")
    codec = [
        Rung(rung.name, Scheme.KLT, known[rung.name].key_bytes, known[rung.name].agreement, index)
        for index, rung in enumerate(tables.rungs)
    ]
    best = known[tables.rungs[0].name]
    first = _exact(known) if top is Scheme.BF16 else plain[0]
    between = [
        Rung(rung.name, rung.scheme, rung.wire_bytes, known[rung.name].agreement)
        for rung in plain[1:]
        if rung.name in known and _keeps_more(known[rung.name], best)
    ]
    return _falling([first or plain[0], *between, *codec])


def ladder_from(
    start: Scheme | str, shape: tuple[int, int], tables: CodecTables | None, costs: Sequence[RungCost]
) -> tuple[Rung, ...]:
    """The bundle's ladder from `start` down: a scheme, or the name of a scheme or of one of the bundle's rungs.

    Raises ConfigError that names the rungs that there are.
    """
    if isinstance(start, Scheme):
        return bundled_ladder(start, shape, tables, costs)
    whole = bundled_ladder(Scheme.BF16, shape, tables, costs)
    names = [rung.name for rung in whole]
    if start.strip().lower() in names:
        return whole[names.index(start.strip().lower()) :]
    try:
        return bundled_ladder(parse_scheme(start), shape, tables, costs)
    except ConfigError as error:
        hint = "" if tables else " (its codec is not calibrated: `splitvla-edge calibrate` adds rungs)"
        raise ConfigError(f"{error}; or one of this bundle's rungs, {', '.join(names)}{hint}") from error


def read_costs(extra: Mapping[str, Any]) -> tuple[RungCost, ...]:
    """What calibration wrote into the edge bundle's spec.json; empty where it never ran. Raises BundleError."""
    found = extra.get(CODEC_KEY)
    if found is None:
        return ()
    try:
        costs = tuple(RungCost(**entry) for entry in found["rungs"])
        if not all(isinstance(cost.name, str) and cost.key_bytes > 0 for cost in costs):
            raise ValueError("a rung has no name or no bytes")
    except (TypeError, KeyError, ValueError) as error:
        raise BundleError(f"spec.json: the codec's costs can't be read ({error}); calibrate again") from error
    return costs


def with_agreement(cost: RungCost, agreement: float) -> RungCost:
    return dataclasses.replace(cost, agreement=round(agreement, 4))


def _exact(known: Mapping[str, RungCost]) -> Rung | None:
    names = [scheme.name.lower() for scheme in _EXACT_SCHEMES]
    costs = [known[name] for name in names if name in known]
    if not costs:
        return None
    cost = min(costs, key=lambda each: each.key_bytes)
    size, scheme = cost.key_bytes, Scheme[cost.name.upper()]
    return Rung(EXACT, scheme, size, 1.0)


def _keeps_more(plain: RungCost, codec: RungCost) -> bool:
    if plain.agreement is not None and codec.agreement is not None:
        return plain.agreement > codec.agreement
    return plain.quality_db > codec.quality_db


def _falling(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    kept = [rungs[0]]
    for rung in rungs[1:]:
        if rung.wire_bytes < kept[-1].wire_bytes:
            kept.append(rung)
    return tuple(kept)
