"""The error tree and its one table, read in both directions."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from splitvla_shared import errors
from splitvla_shared.errors import STATUS_TO_ERROR, LinkError, SplitVLAError, error_for_status, status_for_error


def tree(kind: type[SplitVLAError]) -> Iterator[type[SplitVLAError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


@pytest.mark.parametrize(("status", "kind"), STATUS_TO_ERROR.items())
def test_an_error_comes_back_from_the_wire_as_itself(status: str, kind: type[LinkError]) -> None:
    assert status_for_error(kind("x")) == status
    assert error_for_status(status) is kind
    assert error_for_status(status_for_error(kind("x"))) is kind


def test_every_link_error_but_the_one_that_is_a_field_of_the_reply_is_in_the_table_once() -> None:
    assert sorted(kind.__name__ for kind in STATUS_TO_ERROR.values()) == sorted(
        kind.__name__ for kind in tree(LinkError) if kind not in (LinkError, errors.KeyFrameNeeded)
    )


def test_every_status_of_the_table_is_one_of_grpc_s() -> None:
    assert set(STATUS_TO_ERROR) <= {code.name for code in grpc.StatusCode}


@pytest.mark.parametrize("status", [*sorted({code.name for code in grpc.StatusCode} - set(STATUS_TO_ERROR)), "", "?"])
def test_a_status_outside_the_table_is_the_server_s_fault(status: str) -> None:
    assert error_for_status(status) is errors.ServerFault


@pytest.mark.parametrize("kind", [errors.CodecError, errors.ObservationError])
def test_what_the_service_can_t_read_reaches_the_edge_as_a_rejection(kind: type[SplitVLAError]) -> None:
    assert error_for_status(status_for_error(kind("x"))) is errors.RequestRejected


@pytest.mark.parametrize("kind", [LinkError, errors.ConfigError, errors.BundleError, errors.RobotError])
def test_any_other_error_of_the_service_reaches_the_edge_as_its_fault(kind: type[SplitVLAError]) -> None:
    assert error_for_status(status_for_error(kind("x"))) is errors.ServerFault


def test_exit_codes_tell_the_branches_apart() -> None:
    expected = {
        errors.SplitVLAError: 1,
        errors.ConfigError: 2,
        errors.ObservationError: 2,
        errors.CheckpointError: 3,
        errors.BundleError: 3,
        errors.SpecMismatch: 3,
        errors.LinkError: 4,
        errors.Unreachable: 4,
        errors.CodecError: 5,
        errors.RobotError: 6,
    }
    assert {kind: kind.exit_code for kind in expected} == expected
    assert all(1 <= kind.exit_code <= 125 for kind in tree(SplitVLAError))


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    text = errors.__doc__ or ""
    drawn = {line.split()[-1] if "──" not in line else line.split("── ")[1].split()[0] for line in tree_lines(text)}
    assert drawn == {kind.__name__ for kind in tree(SplitVLAError) if kind.__module__ == errors.__name__}


def tree_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if "──" in line or line == "SplitVLAError"]
