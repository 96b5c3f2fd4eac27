"""The ladder of a calibrated bundle: exact first, then what keeps most, in falling bytes; and where it begins."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitvla_shared.errors import BundleError, ConfigError
from splitvla_shared.nouns import Scheme
from splitvla_shared.rungs import RungCost, bundled_ladder, ladder_from, plain_ladder, read_costs, with_agreement
from tests.codec_tables import formula_tables

TABLES = formula_tables(steps=(0.25, 0.5, 1.0))
SHAPE = (256, 4096)
NAMES = [rung.name for rung in TABLES.rungs]


def cost(name: str, size: int, db: float, seen_db: float | None = None) -> RungCost:
    return RungCost(name, 12, size, size, None, None, db, 1.0, 1.0, seen_db)


PLAIN = [cost("bf16", 2_097_156, 50), cost("bf16_zstd", 1_900_000, 50), cost("int8", 1_049_604, 38)]
CODEC = [cost(NAMES[0], 40_000, 36), cost(NAMES[1], 20_000, 30), cost(NAMES[2], 9_000, 20)]


def test_it_begins_with_the_exact_tensor_in_fewest_bytes_and_ends_with_the_codecs_smallest() -> None:
    ladder = bundled_ladder(Scheme.BF16, SHAPE, TABLES, [*PLAIN, *CODEC])
    assert [rung.name for rung in ladder] == ["exact", "int8", *NAMES]
    assert (ladder[0].scheme, ladder[0].wire_bytes, ladder[0].agreement) == (Scheme.BF16_ZSTD, 1_900_000, 1.0)
    assert [(rung.scheme, rung.codec_rung) for rung in ladder[2:]] == [
        (Scheme.KLT, 0),
        (Scheme.KLT, 1),
        (Scheme.KLT, 2),
    ]


def test_zstd_is_not_used_where_it_saves_nothing() -> None:
    larger = [PLAIN[0], cost("bf16_zstd", 2_097_200, 50)]
    ladder = bundled_ladder(Scheme.BF16, SHAPE, TABLES, [*larger, *CODEC])
    assert (ladder[0].name, ladder[0].scheme) == ("exact", Scheme.BF16)


def test_a_plain_scheme_that_keeps_less_than_the_codec_is_no_rung() -> None:
    """Otherwise a link with room for it would be given worse actions in more bytes."""
    worse = [*PLAIN[:2], cost("int8", 1_049_604, 33)]
    assert "int8" not in [rung.name for rung in bundled_ladder(Scheme.BF16, SHAPE, TABLES, [*worse, *CODEC])]


def test_what_the_backbone_sees_counts_more_than_the_error_and_agreement_more_than_both() -> None:
    seen = [*PLAIN[:2], cost("int8", 1_049_604, 38, seen_db=31.0)]
    codec = [cost(NAMES[0], 40_000, 30, seen_db=35.0), *CODEC[1:]]
    assert "int8" not in [rung.name for rung in bundled_ladder(Scheme.BF16, SHAPE, TABLES, [*seen, *codec])]
    judged = [*PLAIN[:2], with_agreement(seen[2], 0.999), with_agreement(codec[0], 0.99), *codec[1:]]
    ladder = bundled_ladder(Scheme.BF16, SHAPE, TABLES, judged)
    assert [(rung.name, rung.agreement) for rung in ladder[1:3]] == [("int8", 0.999), (NAMES[0], 0.99)]


def test_without_tables_it_is_the_plain_ladder() -> None:
    assert bundled_ladder(Scheme.F32, SHAPE, None, ()) == plain_ladder(Scheme.F32, SHAPE)


@given(
    top=st.sampled_from([scheme for scheme in Scheme if scheme not in (Scheme.KLT, Scheme.KLT_DELTA)]),
    sizes=st.lists(st.integers(1, 3_000_000), min_size=3, max_size=3),
    qualities=st.lists(st.floats(-5, 60), min_size=5, max_size=5),
)
def test_whatever_was_measured_bytes_fall_strictly_and_the_top_is_first(
    top: Scheme, sizes: list[int], qualities: list[float]
) -> None:
    costs = [cost(name, size, db) for name, size, db in zip(NAMES, sizes, qualities, strict=False)]
    costs += [cost("int8", 1_049_604, qualities[3]), cost("int4", 557_060, qualities[4]), *PLAIN[:2]]
    ladder = bundled_ladder(top, SHAPE, TABLES, costs)
    assert all(above.wire_bytes > below.wire_bytes for above, below in itertools.pairwise(ladder))
    assert ladder[0].scheme in ((Scheme.BF16, Scheme.BF16_ZSTD) if top is Scheme.BF16 else (top,))
    for rung in ladder:
        assert (rung.scheme is Scheme.KLT) == (rung.codec_rung is not None)
        assert rung.codec_rung is None or TABLES.rungs[rung.codec_rung].name == rung.name


def test_it_begins_where_a_name_says() -> None:
    costs = [*PLAIN, *CODEC]
    assert [rung.name for rung in ladder_from(NAMES[1], SHAPE, TABLES, costs)] == NAMES[1:]
    assert [rung.name for rung in ladder_from(f" {NAMES[1].upper()} ", SHAPE, TABLES, costs)] == NAMES[1:]
    assert [rung.name for rung in ladder_from("int8", SHAPE, TABLES, costs)] == ["int8", *NAMES]
    assert ladder_from("f32", SHAPE, TABLES, costs)[0].scheme is Scheme.F32


def test_an_unknown_name_is_answered_with_the_names_that_there_are() -> None:
    with pytest.raises(ConfigError, match=rf"'db99'.*rungs, exact, int8, {', '.join(NAMES)}$"):
        ladder_from("db99", SHAPE, TABLES, [*PLAIN, *CODEC])
    with pytest.raises(ConfigError, match="its codec is not calibrated"):
        ladder_from("db36", SHAPE, None, ())


def test_costs_that_do_not_speak_of_a_rung_are_refused() -> None:
    with pytest.raises(BundleError, match=f"no costs of the codec's rung '{NAMES[2]}'"):
        bundled_ladder(Scheme.BF16, SHAPE, TABLES, [*PLAIN, *CODEC[:2]])


def test_costs_are_read_back_as_they_were_written() -> None:
    extra = {"codec": {"rungs": [dataclasses.asdict(each) for each in CODEC]}}
    assert read_costs(extra) == tuple(CODEC)
    assert read_costs({}) == ()


@pytest.mark.parametrize(
    "damaged", [3, {}, {"rungs": [{"name": "db36"}]}, {"rungs": [{**dataclasses.asdict(CODEC[0]), "key_bytes": 0}]}]
)
def test_damaged_costs_are_one_line(damaged: object) -> None:
    with pytest.raises(BundleError, match="calibrate again"):
        read_costs({"codec": damaged})
