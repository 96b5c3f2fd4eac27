"""gRPC ignores an option that it does not know: a misspelt one is found here, and not by robots that are thrown out."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc._cython import cygrpc

from splitvla_shared.transport import client_options, server_options

_CORE = Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("name", sorted({name for name, _ in [*client_options(), *server_options(1)]}))
def test_every_option_is_one_that_grpc_knows(name: str) -> None:
    assert name.encode() in _CORE
