"""The mutation check's mutants still are what they change: each guard's text stands once in its file."""

from __future__ import annotations

import pytest

from benchmarks.mutate_guards import INNER, PACKAGE, ROOT, Mutant, guard_mutants
from splitvla_edge.fallback.guards import GUARDS

MUTANTS = [*guard_mutants((ROOT / PACKAGE / "guards.py").read_text(encoding="utf-8")), *INNER]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_finds_what_it_changes(mutant: Mutant) -> None:
    text = (ROOT / PACKAGE / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    assert mutant.new != mutant.old


def test_every_guard_but_the_last_has_a_mutant() -> None:
    assert [mutant.name for mutant in MUTANTS[: len(GUARDS) - 1]] == [str(event) for event, _, _ in GUARDS[:-1]]
