"""The agreement of precisions: its arithmetic, and the loading of each precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.agreement import Agreement, Shown, answers, compare, load, main, report
from splitvla_cloud.precision import Precision
from splitvla_shared.bundle import open_bundle


def test_ids_are_counted_as_equal_one_bin_off_or_further() -> None:
    assert compare([(5, 6, 7), (1, 2, 3)], [(5, 7, 9), (1, 2, 3)]) == Agreement(6, 4, 1, 2, 1)


def test_the_table_holds_each_precision_against_fp32_and_bf16() -> None:
    said: dict[Precision, list[tuple[int, ...]]] = {
        "fp32": [(5, 6), (7, 8)],
        "bf16": [(5, 6), (7, 9)],
        "nf4": [(5, 8), (7, 9)],
    }
    rows = [line for line in report(said, "again", 0).splitlines() if line.startswith("| nf4")]
    assert rows == ["| nf4 | 50.0 % | 25.0 % | 25.0 % | 0 of 2 | 75.0 % | 0.0 % | 25.0 % | 1 of 2 |"]
    alone = report({"nf4": said["nf4"]}, "again", 0).splitlines()
    assert "| nf4 | - | - | - | - | - | - | - | - |" in alone


@pytest.mark.parametrize("precision", ["fp32", "fp8", "int4"])
def test_every_precision_answers_in_full(tiny_bundles: Path, precision: Precision) -> None:
    backbone = load(open_bundle(tiny_bundles / "cloud", "cloud"), precision)
    patches = np.random.default_rng(0).standard_normal((8, 128), dtype=np.float32)
    (answer,) = answers(backbone, [Shown((1, 5, 6), patches)], 7)
    assert len(answer) == 7


@pytest.mark.parametrize(("options", "told"), [(["--every", "0"], "--every 0"), (["--precisions", "fp64"], "fp64")])
def test_a_wrong_option_is_named_on_one_line(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("agreement: error: ")
    assert told in error
