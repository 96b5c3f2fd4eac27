"""Repeated fields are counted before they are walked; tests/test_service.py has what is refused, in what words."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pytest

from splitvla_cloud.validation import _check_draft, _check_state
from splitvla_shared.errors import RequestRejected


class Millions(Collection[int]):
    """A field whose length is known and whose numbers nobody may ask for."""

    def __len__(self) -> int:
        return 4_000_000

    def __contains__(self, item: object) -> bool:
        raise AssertionError

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("walked before it was counted")


def test_a_field_that_is_far_too_long_is_refused_by_its_length_alone() -> None:
    """A message of the largest legal size holds a million numbers: walking them would hold the event loop."""
    with pytest.raises(RequestRejected, match="4000000 values, at most 64"):
        _check_state(Millions())
    with pytest.raises(RequestRejected, match="4000000 draft tokens; the answer has 7"):
        _check_draft(Millions(), 7, 32064)
