"""The table of many robots on one server."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.end_to_end.fleet import Fleet
from benchmarks.end_to_end.results import Section, Summary

_MIB = 1 << 20
_SCALE_TEXT = """Each robot is a process that asks {hz:g} times a second with embeddings recorded as {rung}, one call
in flight, a deadline of {deadline:.0f} ms, and encodes nothing. Its last answer is the draft of the next:
{accepted:.1f} tokens of each were right on average, with frames that lie further apart than a robot's. Fairness is
Jain's index over the robots' answers. CPU is in processors{shared}."""
_SHARED = (
    ": robots and server share the {cores} of this machine, so that the last rows measure it as much as\nthe server"
)


def _besides(fleet: Fleet) -> str:
    """What an answer costs the server, the model and all else; while hardly anybody else wants its processors."""
    if fleet.server_ms is None or not fleet.model_ms:
        return ""
    model_ms = Summary.of(fleet.model_ms).p50
    robots = "one robot" if len(fleet.robots) == 1 else f"{len(fleet.robots)} robots"
    return (
        f" With {robots} an answer costs the server {fleet.server_ms:.1f} ms of a processor; the model takes "
        f"{model_ms:.1f} of them (p50, on one thread)."
    )


def scale_section(
    fleets: Sequence[Fleet], model: str, rung: str, hz: float, deadline_s: float, cores: int | None
) -> Section:
    """cores: of the machine that robots and server share; None where the server has its own."""
    rows, metrics = [], {}
    for fleet in fleets:
        count = len(fleet.robots)
        asked = hz * count
        if fleet.latencies_ms:
            metrics[f"{count} robots"] = Summary.of(fleet.latencies_ms)
        rows.append(
            (
                str(count),
                f"{asked:.0f}",
                f"{fleet.actions_per_s:.1f}",
                *Summary.cells_of(fleet.latencies_ms),
                f"{fleet.fairness:.3f}",
                fleet.missed,
                "-" if fleet.server_cpu is None else f"{fleet.server_cpu:.2f}",
                f"{fleet.robots_cpu:.2f}",
                "-" if fleet.server_rss is None else f"{fleet.server_rss / _MIB:,.0f}",
                f"{fleet.robots[0].rss_bytes / _MIB:,.0f}",
            )
        )
    return Section(
        name="scale",
        title=f"Robots on one server: {model}",
        header=(
            *("robots", "asked a second", "actions a second", "p50 ms", "p90", "p99", "max", "fairness", "misses"),
            *("server CPU", "robots' CPU", "server MiB", "robot MiB"),
        ),
        rows=tuple(rows),
        n=sum(len(fleet.latencies_ms) for fleet in fleets),
        metrics=metrics,
        text=_SCALE_TEXT.format(
            hz=hz,
            rung=rung,
            deadline=deadline_s * 1e3,
            accepted=fleets[0].accepted,
            shared="" if cores is None else _SHARED.format(cores=cores),
        )
        + _besides(fleets[0]),
    )
