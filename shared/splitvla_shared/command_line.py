"""What both command lines do around a command: run it, and turn an error into one line and its exit code."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from splitvla_shared.errors import SplitVLAError

_STDERR = 2
_INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse `argv` (None: the process's own) and run the function that the parser set as `command`.

    Returns its exit code, or the error's own after one line on standard error.
    """
    _open_closed_streams()
    arguments = parser.parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return _run(parser.prog, command, arguments)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _settle(stream)


def _run(prog: str, command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    try:
        return command(arguments)
    except SplitVLAError as error:
        with contextlib.suppress(OSError):  # a terminal that is gone must not change the exit code
            print(f"{prog}: error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED


def _open_closed_streams() -> None:
    """Nothing opened later, a robot's serial line or a connection, may be what libraries write their errors to."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(number)
    for number, name in ((1, "stdout"), (_STDERR, "stderr")):
        if getattr(sys, name) is None:  # Python's word for closed, by which `print` means the other one
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def _settle(stream: TextIO) -> None:
    """Of a stream that nobody reads any more: what is left in it goes nowhere. The interpreter would end with 120."""
    try:
        stream.flush()
    except (OSError, ValueError):  # ValueError: it is closed
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
