"""The verdict: the fastest way that a team may use, and a plain word where the split loses."""

from __future__ import annotations

from benchmarks.end_to_end.alternatives import Measured
from benchmarks.end_to_end.verdict import SITUATIONS, verdict_section
from benchmarks.end_to_end.ways import Answered, Family


def way(name: str, family: Family, total_ms: float, up_bytes: int = 0) -> Measured:
    answer = Answered((1,), (0.0,), total_ms=total_ms, robot_ms=total_ms / 2, server_ms=total_ms / 2, up_bytes=up_bytes)
    return Measured(name, family, (answer,))


LOCAL = way("on the robot", Family.LOCAL, 400.0)
JPEG = way("REST, JPEG", Family.JPEG, 200.0, 20_000)
EXACT = way("split, f32", Family.SPLIT, 180.0, 4_000_000)
RUNG = way("split, db30", Family.LOSSY, 190.0, 10_000)


def rows(*ways: Measured, there: bool = False) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in verdict_section(ways, "a model", there=there).rows}


def test_each_situation_gets_the_fastest_way_that_it_allows() -> None:
    found = rows(LOCAL, way("REST, JPEG", Family.JPEG, 150.0, 20_000), EXACT, RUNG)
    anything, no_room, private = (found[situation] for situation, _ in SITUATIONS)
    assert {cell.split(":")[0] for cell in anything} == {"REST, JPEG"}
    assert {cell.split(":")[0] for cell in no_room} == {"REST, JPEG"}
    assert private[0].startswith("split, db30: 208 ms, 4.8 Hz"), (
        "190 ms, 80 kbit at 10 Mbit/s, and a round trip of 10 ms"
    )


def test_over_its_own_link_a_run_adds_none() -> None:
    assert rows(JPEG, EXACT, there=True)["nor may the picture leave it"] == ("split, f32: 180 ms, 5.6 Hz",)


def test_where_the_split_loses_it_says_what_to_use_instead() -> None:
    text = verdict_section((way("REST, JPEG", Family.JPEG, 100.0, 20_000), EXACT), "a model").text
    assert "the split is faster than a picture on 0 of 16 links; else, if pictures may leave it, use REST, JPEG" in text


def test_where_the_split_wins_everywhere_it_says_so() -> None:
    text = verdict_section((JPEG, RUNG), "a model").text
    assert text.endswith("the split is faster than a picture on 16 of 16 links.")


def test_without_a_rival_there_is_no_verdict() -> None:
    section = verdict_section((EXACT,), "a model", there=True)
    assert "this run can't say" in section.text
    assert section.rows[0][1].startswith("split, f32")
    assert rows(JPEG, there=True)["nor may the picture leave it"] == ("not measured",)
