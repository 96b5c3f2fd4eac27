"""The tables of the links: the grid, the traces, and real sockets against the model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.end_to_end.alternatives import Measured, measure
from benchmarks.end_to_end.links import Driven, Driving, Link, drive, grid, latency_ms, wire_ms
from benchmarks.end_to_end.results import Section, Summary
from benchmarks.end_to_end.site import Site, open_ways
from benchmarks.end_to_end.ways import Family, Way
from benchmarks.link import DOWN, UP, LinkProxy
from benchmarks.link.traces import TraceError, read_rates
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import Image

_TRACE_SUFFIXES = {".list", ".csv", ".up", ".down", ".mahi"}
_TRACE_RTT_MS = 30.0
# Corners and middle of the grid; the first one has no link in it, only the proxy.
SOCKET_LINKS = (
    Link.symmetric(None, 0.0),
    Link.symmetric(1000.0, 1.0),
    Link.symmetric(100.0, 10.0),
    Link.symmetric(50.0, 60.0),
)
_GRID_TEXT = """Medians of what was measured over loopback, with the link's time added by the emulator's model:
payload over rate, and the delay. Left out: TCP's slow start after a pause, which adds round trips to large payloads
on long links, so that the split looks better here than it is there. The table of sockets holds the model to
account."""
_CHOICE_TEXT = """As the table of links is made. A lossy rung takes part where it kept at least as many tokens as the
JPEG did: a smaller one would be faster still, with another action."""
_DRIVE_TEXT = """Simulated for {duration:g} s with one call in flight and a frame every {period:.0f} ms: actions a
second, and the share of {hz:g} Hz ticks with a new action whose frame is at most {age:.0f} ms old. A call is given up
{deadline:.0f} ms after its frame."""
_TRACE_TEXT = f""" Round trip {_TRACE_RTT_MS:g} ms; the uplink follows the trace. The third number is the p99 of the
answers that came, the fourth the share of calls that were given up: a p99 beside many of these is that of survivors."""
_PROXY_TEXT = """Only the wire is compared, the round trip less what both machines say they computed, so that a busy
machine does not blur it. The model starts from the first link's sockets, the proxy alone, because that is a TCP proxy
in Python and costs milliseconds a megabyte itself; what is held against the sockets is what a link adds."""


def grid_section(measured: Sequence[Measured]) -> Section:
    """p50 latency of each way on each link of the grid, the lowest in bold."""
    rows: list[tuple[str, ...]] = []
    metrics: dict[str, Summary] = {}
    for link in grid():
        times = [latency_ms(way, link) for way in measured]
        cells = (f"**{time:,.0f}**" if time == min(times) else f"{time:,.0f}" for time in times)
        rows.append((link.name, *cells))
        for way, time in zip(measured, times, strict=True):
            metrics[f"{way.name} @ {link.name}"] = Summary(1, time, time, time, time, 0.0)
    return Section(
        name="links",
        title="Latency over links, p50 ms; lowest in bold",
        header=("link: rate, round trip", *(way.name for way in measured)),
        rows=tuple(rows),
        n=len(measured[0].answers),
        metrics=metrics,
        text=_GRID_TEXT,
    )


def choice_section(measured: Sequence[Measured], name: str, whose: str) -> Section:
    """The fastest way of each family on each link, p50 latency and name; the lowest in bold."""
    families = [family for family in Family if any(way.family is family for way in measured)]
    rows: list[tuple[str, ...]] = []
    for link in grid():
        best = [
            min((latency_ms(way, link), way.name) for way in measured if way.family is family) for family in families
        ]
        least = min(best)
        rows.append((link.name, *(_choice(each, each == least) for each in best)))
    return Section(
        name=name,
        title=f"{whose}: the fastest way of each kind over links, p50 ms; lowest in bold",
        header=("link: rate, round trip", *(family.value for family in families)),
        rows=tuple(rows),
        n=len(measured[0].answers),
        text=_CHOICE_TEXT,
    )


def _choice(found: tuple[float, str], lowest: bool) -> str:
    time, name = found
    short = name.removeprefix("split, ").removeprefix("on the robot, ")
    return f"**{time:,.0f}** ({short})" if lowest else f"{time:,.0f} ({short})"


def control_section(measured: Sequence[Measured], driving: Driving) -> Section:
    """Control rate and fresh share on each link of the grid."""
    return _driven_section("control", "the grid", measured, grid(), driving, _rate_and_share)


def traces_section(measured: Sequence[Measured], links: Sequence[Link], driving: Driving) -> Section:
    """The same on traces, with the tail."""
    section = _driven_section("traces", "traces", measured, links, driving, _with_tail)
    return dataclasses.replace(section, text=section.text + _TRACE_TEXT)


def _driven_section(
    name: str,
    where: str,
    measured: Sequence[Measured],
    links: Sequence[Link],
    driving: Driving,
    cell: Callable[[Driven], str],
) -> Section:
    text = _DRIVE_TEXT.format(
        duration=driving.duration_s,
        period=1e3 / driving.control_hz,
        hz=driving.control_hz,
        age=driving.max_age_s * 1e3,
        deadline=driving.deadline_s * 1e3,
    )
    return Section(
        name=name,
        title=f"Control rate reached, Hz, and share of ticks with a fresh action: {where}",
        header=("link", *(way.name for way in measured)),
        rows=tuple((link.name, *(cell(drive(way.answers, link, driving)) for way in measured)) for link in links),
        n=len(measured[0].answers),
        text=text,
    )


def _rate_and_share(driven: Driven) -> str:
    return "never" if driven.latency is None else f"{driven.hz:.1f}, {driven.fresh:.0%}"


def _with_tail(driven: Driven) -> str:
    return (
        "never"
        if driven.latency is None
        else (f"{_rate_and_share(driven)}, {driven.latency.p99:,.0f} ms, {driven.lost_share:.0%} lost")
    )


def read_traces(folder: Path) -> list[Link]:
    """Every trace of a folder and those below it. Raises ConfigError."""
    links = []
    for file in sorted(folder.rglob("*")):
        if file.suffix not in _TRACE_SUFFIXES:
            continue
        try:
            links.append(Link.traced(file.stem, read_rates(file), _TRACE_RTT_MS))
        except TraceError as error:
            raise ConfigError(f"trace {file}: {error}; name a folder that holds only traces with --traces") from error
    if not links:
        raise ConfigError(f"--traces {folder} holds no traces ({', '.join(sorted(_TRACE_SUFFIXES))})")
    return links


@contextlib.contextmanager
def through_proxies(site: Site) -> Iterator[tuple[list[Way], Callable[[Link], None]]]:
    """The site's ways with an emulated link before every server, and a function that sets all the links."""
    with contextlib.ExitStack() as stack:
        proxies: dict[str, LinkProxy] = {}

        def via(address: str) -> str:
            if address not in proxies:
                host, _, port = address.rpartition(":")
                proxies[address] = stack.enter_context(LinkProxy((host, int(port))))
            return proxies[address].address

        def set_links(link: Link) -> None:
            for proxy in proxies.values():
                proxy.set(link.up, UP)
                proxy.set(link.down, DOWN)

        yield stack.enter_context(open_ways(site, via)), set_links


def sockets_section(
    site: Site,
    measured: Sequence[Measured],
    frames: Sequence[Image],
    instruction: str,
    n: int,
    step: Callable[[float], object] = lambda share: None,
) -> Section:
    """Real sockets through the emulator beside what the model says of the same links."""
    names = {way.name for way in measured}
    rows: list[tuple[str, ...]] = []
    metrics: dict[str, Summary] = {}
    unlinked: dict[str, Measured] = {}
    remote = dataclasses.replace(
        site, checkpoint=None, bundles=None
    )  # a link is of no concern to the robot's own model
    with through_proxies(remote) as (opened, set_links):
        ways = [way for way in opened if way.name in names]
        for index, link in enumerate(SOCKET_LINKS):
            set_links(link)
            for seen in measure(ways, frames, instruction, n):
                model = wire_ms(unlinked.setdefault(seen.name, seen), link)
                real = Summary.of([answer.wire_ms for answer in seen.answers])
                metrics[f"{seen.name} @ {link.name}"] = real
                cells = (f"{real.p50:,.0f}", f"{model:,.0f}", f"{real.p50 - model:+,.0f}")
                rows.append((link.name, seen.name, *cells))
            step((index + 1) / len(SOCKET_LINKS))
    return Section(
        name="sockets",
        title="Real sockets through the link emulator, against the model",
        header=("link: rate, round trip", "way", "wire over sockets, p50 ms", "wire of the model", "off by"),
        rows=tuple(rows),
        n=n,
        metrics=metrics,
        text=_PROXY_TEXT,
    )
