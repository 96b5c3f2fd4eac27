"""A progress bar with the time left, for everything that takes longer than a few seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

_WIDTH = 28
_PERIOD_S = 0.1  # redraws a second are for people; a terminal over ssh need not see more


class TerminalProgress:
    """Draws `stage [#####....] 42 %, 12 s left` in place on a terminal; elsewhere one line a stage.

    Called as progress(stage, done, total) in any unit. Mutable state: the stage in hand, owned by the calling thread.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._stage = ""
        self._started = self._drawn = 0.0

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_line()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._end_line()
            self._stage, self._started, self._drawn = stage, now, 0.0
            if not self._terminal:
                print(f"{stage} ...", file=self._stream, flush=True)
        if self._terminal and (now - self._drawn >= _PERIOD_S or done >= total):
            self._drawn = now
            self._stream.write("\r\x1b[K" + bar(stage, done, total, now - self._started))
            self._stream.flush()

    def _end_line(self) -> None:
        if self._stage and self._terminal:
            self._stream.write("\n")


def bar(stage: str, done: int, total: int, elapsed_s: float) -> str:
    """One line; the time left is elapsed time scaled by what is left, shown once a tenth is done or a second gone.

    Of work that is one step and says nothing until it is done, the time that it has taken so far.
    """
    share = min(done / total, 1.0) if total > 0 else 1.0
    filled = round(share * _WIDTH)
    line = f"{stage:<24} [{'#' * filled}{'.' * (_WIDTH - filled)}] {share * 100:3.0f} %"
    if share >= 1.0:
        return f"{line}, {elapsed_s:.1f} s"
    if share > 0.0 and (share >= 0.1 or elapsed_s >= 1.0):
        return f"{line}, {elapsed_s * (1 - share) / share:.0f} s left"
    return f"{line}, {elapsed_s:.0f} s so far" if elapsed_s >= 1.0 and not share else line
