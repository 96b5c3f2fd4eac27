"""The circuit breaker of one server: after failures in a row it is left alone, then tried by one probe at a time."""

from __future__ import annotations

import math

_FAILURES = 2  # in a row
_PAUSE_S = (1.0, 8.0)  # first and last


class Breaker:
    """Pure: `now` is monotonic seconds. Mutable state: failures in a row, the pause, and whether a probe is out."""

    def __init__(self) -> None:
        self._failures = 0
        self._closed = True
        self._pause_s = _PAUSE_S[0]
        self._probe_at = math.inf
        self._probing = False

    @property
    def closed(self) -> bool:
        """Whether calls may go to this server."""
        return self._closed

    def failed(self, now: float, *, certain: bool = False) -> None:
        """A call failed. certain: once is enough, for a server that refuses connections."""
        self._failures += 1
        if self._closed and (certain or self._failures >= _FAILURES):
            self.open(now)

    def open(self, now: float) -> None:
        """Leave the server alone; the first probe comes after a pause."""
        self._closed, self._probe_at = False, now + self._pause_s

    def succeeded(self) -> None:
        self._failures, self._pause_s = 0, _PAUSE_S[0]
        self._closed, self._probe_at = True, math.inf

    def take_probe(self, now: float) -> bool:
        """Whether the caller is to send the one probe now."""
        if self._closed or self._probing or now < self._probe_at:
            return False
        self._probing = True
        return True

    def probed(self, now: float, well: bool) -> None:
        """The probe came back. When it failed, the next one waits twice as long."""
        self._probing = False
        if well:
            self.succeeded()
            return
        self._pause_s = min(2 * self._pause_s, _PAUSE_S[1])
        self._probe_at = now + self._pause_s
