"""What the draft benchmark counts, and what it says of a log that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.drafts import Logged, accept, main, read_log, report
from splitvla_shared.errors import ConfigError


def test_pairs_are_counted_inside_an_episode_and_by_place() -> None:
    log = [
        Logged("a", (10, 20, 30)),
        Logged("a", (10, 21, 30)),  # one wrong id, one bin off: two passes
        Logged("a", (10, 21, 40)),  # the last id is never fed, so that one pass finds it
        Logged("b", (10, 21, 40)),
        Logged("b", (12, 25, 49)),  # all wrong: a pass for each
    ]
    found = accept(log)
    assert found.pairs == 3
    assert found.right.tolist() == [2, 1, 1]
    assert found.near.tolist() == [0, 1, 0]
    assert found.kept.tolist() == [1, 0, 2, 0]
    assert found.passes.tolist() == [0, 1, 1, 1]
    printed = report(found, "command", 0)
    assert "| 2 | 33 % | 33 % | 33 % |" in printed
    assert "On the average 1.33 of 3 ids are kept, and an answer takes 2.00 passes." in printed


def test_a_written_answer_is_read_back_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, copy = tmp_path / "log", tmp_path / "copy"
    log = [Logged("a", (1,) * 7), Logged("a", (1,) * 7)]
    path.write_text("".join(each.to_json() + "\n" for each in log))
    assert read_log(path) == log
    assert main(["--log", str(path), "--save", str(copy)]) == 0
    assert "| gripper | 100 % | 0 % | 0 % |" in capsys.readouterr().out
    assert copy.read_text() == path.read_text()


def test_a_log_of_two_robots_or_of_single_answers_is_refused() -> None:
    with pytest.raises(ConfigError, match="of 2 and of 3"):
        accept([Logged("a", (1, 2)), Logged("a", (1, 2)), Logged("b", (1, 2, 3)), Logged("b", (1, 2, 3))])
    with pytest.raises(ConfigError, match="two answers"):
        accept([Logged("a", (1, 2)), Logged("b", (1, 2))])


@pytest.mark.parametrize("line", ["", "[]", '{"episode": "a"}', '{"episode": "a", "tokens": ["x"]}', "{"])
def test_a_line_that_is_no_answer_is_named(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    path.write_text(f"{Logged('a', (1,)).to_json()}\n{line}\n")
    assert main(["--log", str(path)]) == 2
    assert "log line 2 is no" in capsys.readouterr().err


def test_wrong_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--episodes", "0"]) == 2
    assert "--episodes 0" in capsys.readouterr().err
    assert main(["--log", str(tmp_path / "absent")]) == 2
    assert "absent" in capsys.readouterr().err
