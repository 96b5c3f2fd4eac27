"""The progress bar says how far and how long."""

from __future__ import annotations

import io

from splitvla_cloud.progress import TerminalProgress, bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_time_left_is_what_is_left_at_the_pace_so_far() -> None:
    assert bar("write", 25, 100, 10.0).endswith(" 25 %, 30 s left")


def test_no_time_is_promised_before_there_is_a_pace() -> None:
    assert bar("write", 1, 100, 0.2).endswith("  1 %")


def test_a_finished_stage_shows_the_time_it_took() -> None:
    assert bar("write", 100, 100, 12.34).endswith("100 %, 12.3 s")


def test_a_stage_without_work_is_finished() -> None:
    assert "100 %" in bar("write", 0, 0, 0.0)


def test_a_log_file_gets_one_line_a_stage() -> None:
    stream = io.StringIO()
    with TerminalProgress(stream) as progress:
        for done in range(5):
            progress("hash", done, 4)
        progress("write", 1, 1)
    assert stream.getvalue() == "hash ...\nwrite ...\n"


def test_a_terminal_keeps_the_last_state_of_each_stage() -> None:
    stream = Terminal()
    with TerminalProgress(stream) as progress:
        progress("hash", 4, 4)
        progress("write", 1, 1)
    lines = stream.getvalue().split("\n")
    assert "hash" in lines[0]
    assert "write" in lines[1]
    assert "100 %" in lines[1]
