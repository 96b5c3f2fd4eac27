"""The payload ladder falls in bytes from rung to rung and begins with what was asked for."""

from __future__ import annotations

import pytest

from splitvla_shared.codec import SCHEMES, max_payload_bytes
from splitvla_shared.nouns import Scheme
from splitvla_shared.rungs import plain_ladder

SHAPE = (256, 4096)


@pytest.mark.parametrize("top", list(SCHEMES))
def test_every_rung_is_smaller_than_the_one_above(top: Scheme) -> None:
    ladder = plain_ladder(top, SHAPE)
    assert ladder[0].scheme is top
    sizes = [rung.wire_bytes for rung in ladder]
    assert sizes == sorted(set(sizes), reverse=True)
    assert all(rung.wire_bytes == max_payload_bytes(rung.scheme, SHAPE) for rung in ladder)


def test_the_default_ladder_goes_from_bf16_to_int4() -> None:
    assert [rung.name for rung in plain_ladder(Scheme.BF16, SHAPE)] == ["bf16", "int8", "int4"]
