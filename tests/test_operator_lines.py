"""Lines for an operator whose terminal takes none for a while."""

from __future__ import annotations

import io
import threading

from splitvla_shared.operator_lines import Printer


class _Terminal(io.StringIO):
    """Takes nothing until `open` is set. No file: a Printer writes to it as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.asked = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.asked.set()
        self.open.wait(30.0)
        return super().write(text)


def _said(terminal: _Terminal, lines: int) -> Printer:
    """A printer whose thread hangs over line 0, with 1 to 5 behind it."""
    printer = Printer(terminal, prefix="", lines=lines)
    printer.say("0")
    assert terminal.asked.wait(30.0)
    for number in range(1, 6):
        printer.say(str(number))
    return printer


def test_of_more_lines_than_there_is_room_for_the_last_ones_are_kept() -> None:
    terminal = _Terminal()
    printer = _said(terminal, 3)
    terminal.open.set()
    printer.close(30.0)
    assert terminal.getvalue().split() == ["0", "3", "4", "5"]


def test_an_end_waits_for_the_last_words_though_there_is_no_room_for_another() -> None:
    terminal = _Terminal()
    printer = _said(terminal, 5)
    threading.Timer(0.05, terminal.open.set).start()
    printer.close(30.0)
    assert terminal.getvalue().split()[-1] == "5"


def test_an_end_does_not_wait_for_ever() -> None:
    printer = _said(terminal := _Terminal(), 5)
    printer.close(0.05)
    terminal.open.set()
