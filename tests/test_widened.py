"""bfloat16 without bfloat16 arithmetic: a product is rounded once, and left alone where the processor can do it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from splitvla_cloud.engine import widened as module
from splitvla_cloud.engine.widened import product, widened


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("outputs", [1, 511, 512, 1300])
@pytest.mark.parametrize("biased", [True, False])
def test_the_widened_product_is_the_exact_one_rounded_once(outputs: int, biased: bool) -> None:
    rows, weight = random(5, 192, seed=0), random(outputs, 192, seed=1)
    bias = random(outputs, seed=2) if biased else None
    exact = functional.linear(rows.double(), weight.double(), None if bias is None else bias.double())
    found = widened(rows, weight, bias)
    assert found.dtype is torch.bfloat16
    # Half a step of bfloat16, and what a float32 sum of 192 products near 1 is off by.
    assert ((found.double() - exact).abs() <= exact.abs() * 2.0**-8 + 2e-4).all()


def test_a_row_does_not_depend_on_the_others() -> None:
    rows, weight = random(6, 64, seed=3), random(700, 64, seed=4)
    wild = rows.clone()
    wild[0] *= 1e4
    assert torch.equal(widened(wild, weight, None)[1:], widened(rows, weight, None)[1:])


@pytest.mark.parametrize(
    ("dtype", "rows", "can", "expected"),
    [
        (torch.bfloat16, 2, False, "widened"),
        (torch.bfloat16, 2, True, "kernel"),
        (torch.bfloat16, 1, False, "kernel"),  # bound by reading the weights
        (torch.float32, 2, False, "kernel"),
    ],
)
def test_only_rows_in_bfloat16_on_a_processor_without_it_are_widened(
    dtype: torch.dtype, rows: int, can: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    monkeypatch.setattr(module, "_multiplies_bfloat16", lambda: can)
    monkeypatch.setattr(module, "widened", lambda rows, weight, bias: used.append("widened"))
    monkeypatch.setattr(functional, "linear", lambda rows, weight, bias: used.append("kernel"))
    product(torch.zeros(rows, 4, dtype=dtype), torch.zeros(3, 4, dtype=dtype), None)
    assert used == [expected]


def test_this_processor_is_asked_what_it_can_do() -> None:
    assert module._multiplies_bfloat16() in (True, False)
