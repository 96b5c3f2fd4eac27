"""`splitvla-edge doctor`: every check in one table, nothing hidden, and an exit code for scripts."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from splitvla_edge.doctor_checks import CHECKS, CheckResult, DoctorSettings, Patient, Verdict, examine
from splitvla_shared.errors import ConfigError

EXIT_UNWELL = 1
_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.SKIP: "yellow"}
_NARROWEST = 100  # columns; a log file has no width of its own


def diagnose(patient: Patient) -> tuple[CheckResult, ...]:
    """All checks in their order, each of them whatever became of the others.

    Raises ConfigError on a bad budget, or where bundle or server is not set.
    """
    patient.run.perception()
    budget_s = patient.settings.budget_s
    if budget_s is not None and not (math.isfinite(budget_s) and budget_s > 0):
        raise ConfigError(f"budget_s is {budget_s}; expected the seconds that an action may take, such as 0.5")
    try:
        return tuple(examine(patient, check) for check in CHECKS)
    finally:
        if patient.link is not None:
            patient.link.close()


def well(results: Iterable[CheckResult]) -> bool:
    """True when nothing failed; what was skipped does not count."""
    return all(result.verdict is not Verdict.FAIL for result in results)


def print_table(results: Sequence[CheckResult], stream: TextIO) -> None:
    """A row a check, folded and never cut off, then one line of summary."""
    console = Console(file=stream)
    console.width = max(console.width, _NARROWEST) if not console.is_terminal else console.width
    table = Table(show_lines=False)
    for heading in ("check", "verdict", "found", "remedy"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("check", "verdict"))
    for result in results:
        colour = _COLOURS[result.verdict]
        verdict = f"[{colour}]{result.verdict.value}[/]"
        table.add_row(result.check, verdict, escape(result.found), escape(result.remedy))
    console.print(table)
    counts = ", ".join(f"{sum(r.verdict is verdict for r in results)} {verdict.value}" for verdict in Verdict)
    console.print(counts, highlight=False)


def render_json(results: Sequence[CheckResult]) -> str:
    """One JSON object: "ok", and "checks" with the measured numbers of each under "values"."""
    checks = [
        {**dataclasses.asdict(result), "verdict": result.verdict.value, "values": dict(result.values)}
        for result in results
    ]
    return json.dumps({"ok": well(results), "checks": checks})


def doctor(settings: DoctorSettings, stream: TextIO, render: str) -> int:
    """Examine and print as "table" or "json"; 0 when nothing failed, else 1."""
    results = diagnose(Patient(settings))
    if render == "json":
        print(render_json(results), file=stream)
    else:
        print_table(results, stream)
    return 0 if well(results) else EXIT_UNWELL
