"""The gRPC options are ones that gRPC knows: a name that it does not know is ignored without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc._cython import cygrpc

from splitvla_shared.transport import client_options, server_options

LIBRARY = Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("name", sorted({name for name, _ in (*client_options(), *server_options(1))}))
def test_an_option_stands_in_the_library(name: str) -> None:
    assert name.encode() + b"\0" in LIBRARY


def test_a_name_that_grpc_does_not_know_is_found_out() -> None:
    assert b"grpc.http2.min_recv_ping_interval_without_data_ms\0" not in LIBRARY
