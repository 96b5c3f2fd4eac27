"""The end of a run, in one table: what to use, by what may leave the robot and what fits on it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.end_to_end.alternatives import Measured
from benchmarks.end_to_end.links import Link, grid, latency_ms
from benchmarks.end_to_end.regions import FAMILIES, NO_PICTURES, PICTURES, SENT
from benchmarks.end_to_end.results import Section
from benchmarks.end_to_end.ways import Family

TimeOf = Callable[[Measured], float]  # milliseconds from the frame to the action

# A team's situation, and what it may choose from there.
SITUATIONS: tuple[tuple[str, tuple[Family, ...]], ...] = (
    ("anything goes", FAMILIES),
    ("the model does not fit the robot", SENT),
    ("nor may the picture leave it", NO_PICTURES),
)
_COLUMNS = tuple(Link.symmetric(rate, 10.0) for rate in (10.0, 50.0, 100.0, 1000.0))
_TEXT = """Medians of this run's machines, with the link's time added as in the table of links; a lossy rung takes part
where it kept at least as many tokens as the JPEG did. """
_THERE_TEXT = "Medians over this run's own link; a lossy rung takes part where it kept as many tokens as the JPEG did. "


def verdict_section(measured: Sequence[Measured], model: str, *, there: bool = False) -> Section:
    """measured: the ways that are worth choosing. there: over the run's own link, to which none is added."""
    columns: dict[str, TimeOf] = {"this link": _as_measured} if there else {link.name: _over(link) for link in _COLUMNS}
    rows = tuple(
        (situation, *(_cell(_fastest(measured, families, time_of), time_of) for time_of in columns.values()))
        for situation, families in SITUATIONS
    )
    return Section(
        name="verdict",
        title=f"What to use: {model}",
        header=("where", *columns),
        rows=rows,
        n=len(measured[0].answers),
        text=(_THERE_TEXT if there else _TEXT) + _conclusion(measured, there),
    )


def _as_measured(way: Measured) -> float:
    return way.total.p50


def _over(link: Link) -> TimeOf:
    return lambda way: latency_ms(way, link)


def _fastest(measured: Sequence[Measured], families: Sequence[Family], time_of: TimeOf) -> Measured | None:
    return min((way for way in measured if way.family in families), key=time_of, default=None)


def _cell(way: Measured | None, time_of: TimeOf) -> str:
    return "not measured" if way is None else f"{way.name}: {time_of(way):,.0f} ms, {1e3 / time_of(way):.1f} Hz"


def _conclusion(measured: Sequence[Measured], there: bool) -> str:
    """Where the split loses, and to what."""
    times = [_as_measured] if there else [_over(link) for link in grid()]
    lost_to = []
    for time_of in times:
        split, picture = _fastest(measured, NO_PICTURES, time_of), _fastest(measured, PICTURES, time_of)
        if split is None or picture is None:
            return "Whether a picture or the split is the one to send, this run can't say: it has but one of them."
        if time_of(picture) <= time_of(split):
            lost_to.append(picture.name)
    where = "this link" if there else f"{len(times) - len(lost_to)} of {len(times)} links"
    if not lost_to:
        return f"Where the model does not fit the robot, the split is faster than a picture on {where}."
    instead = max(lost_to, key=lost_to.count)
    how = "no faster than a picture on this link" if there else f"faster than a picture on {where}"
    return f"Where the model does not fit the robot, the split is {how}; else, if pictures may leave it, use {instead}."
