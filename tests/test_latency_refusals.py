"""What the latency benchmark refuses before it measures anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import latency


def test_an_out_that_is_a_file_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.write_text("not a folder", encoding="utf-8")
    assert latency.main(["--out", str(taken)]) == 2
    assert f"--out {taken} can't be made" in capsys.readouterr().err


def test_sections_that_name_none_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert latency.main(["--sections", ","]) == 2
    assert "names none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--server", "127.0.0.1:9", "--bundle", "edge", "--calibrate", "frames"),
            "--calibrate: of no use with --server",
        ),
        (("--rest", "127.0.0.1:9", "--tls-ca", "ca.pem"), "--rest and --tls-ca: of no use without --server"),
        (("--calibrate", "not/there"), "--calibrate not/there: no such file"),
        (("--precision", "fp7"), "precision 'fp7' is unknown"),
        (("--frames", "not/there"), "--frames not/there is not there"),
        (("--traces", "not/there"), "--traces not/there holds no traces"),
        (("--server", "127.0.0.1:9", "--bundle", "edge", "--sections", "policy"), "leave it out with --server"),
    ],
)
def test_options_that_are_wrong_or_would_change_nothing_are_refused(
    options: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latency.main([*options, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_a_server_that_is_not_there_is_missed_before_a_model_is_loaded(
    tiny_bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "_CONNECT_S", 0.2)
    options = ["--server", "127.0.0.1:1", "--bundle", str(tiny_bundles / "edge"), "--out", str(tmp_path / "out")]
    assert latency.main(options) == 4
    assert "no server at 127.0.0.1:1 after 0.2 s" in capsys.readouterr().err
