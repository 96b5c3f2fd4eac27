"""An error on the command line is one line and an exit code, never a traceback."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from splitvla_shared.command_line import run_command
from splitvla_shared.errors import BundleError, Unreachable


def _parser(command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="program")
    parser.set_defaults(command=command)
    return parser


def _raise(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def command(arguments: argparse.Namespace) -> int:
        raise error

    return command


def test_a_command_s_own_exit_code_is_the_program_s() -> None:
    assert run_command(_parser(lambda arguments: 7), []) == 7


@pytest.mark.parametrize(("error", "code"), [(BundleError("no bundle"), 3), (Unreachable("no server"), 4)])
def test_an_error_is_one_line_and_its_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(_parser(_raise(error)), []) == code
    assert capsys.readouterr().err == f"program: error: {error}\n"


def test_ctrl_c_ends_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(_parser(_raise(KeyboardInterrupt())), []) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_is_gone_does_not_change_the_exit_code(stream: str) -> None:
    """The interpreter flushes once more at its exit, and would end with 120."""
    program = (
        "import argparse, sys\nfrom splitvla_shared.command_line import run_command\n"
        "from splitvla_shared.errors import BundleError\n"
        "def command(arguments):\n"
        f"    sys.stdin.read(); sys.{stream}.write('x' * 100); raise BundleError('no bundle')\n"
        "parser = argparse.ArgumentParser()\nparser.set_defaults(command=command)\nsys.exit(run_command(parser, []))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        gone = process.stdout if stream == "stdout" else process.stderr
        assert gone is not None
        assert process.stdin is not None
        gone.close()
        process.stdin.close()
        assert process.wait(30) == BundleError.exit_code


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_was_closed_from_the_start_does_not_change_the_exit_code(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`>&-` in the shell: Python has no such stream then."""
    monkeypatch.setattr(sys, stream, None)
    assert run_command(_parser(lambda arguments: 6), []) == 6


def test_nothing_that_is_opened_later_takes_the_place_of_a_stream_that_was_closed() -> None:
    program = (
        "import argparse, os, sys\nfrom splitvla_shared.command_line import run_command\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.set_defaults(command=lambda arguments: os.open(os.devnull, os.O_RDONLY))\n"
        "sys.exit(run_command(parser, []))\n"
    )
    closed = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', sys.executable, "-c", program]
    assert subprocess.run(closed, check=False, timeout=60).returncode > 2


def test_a_slip_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(_parser(_raise(ZeroDivisionError())), [])
