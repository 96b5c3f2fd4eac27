"""The choice of the payload rung: down when a slow link is to blame, up when it has looked good for long enough.

Rules of this file:
 - A slow server never costs quality: what a smaller payload would save must be transmission, and worth it.
 - Misses count only once an answer shows that there is a path, and only when their size can explain them.
 - One change a second at most. An upgrade that fails makes the next one wait far longer: a link that flaps looks good
   for seconds, again and again.
"""

from __future__ import annotations

import math
from collections import deque

from splitvla_edge.fallback.account import Lesson
from splitvla_edge.fallback.latency import LatencyModel, Sample
from splitvla_edge.fallback.messages import Outcome
from splitvla_edge.fallback.settings import FallbackSettings

_CHANGE_S = 1.0  # between two changes, at least
_MISS_MEMORY_S = 1.0
_MISSES = 2
_BLIND_S = 20.0  # at one size, before a larger one is tried on no evidence
_FAILED_S, _FACTOR = 60.0, 3.0  # the wait after a first failed upgrade, and how it grows with the next ones


class RungChooser:
    """Owned by the fallback machine. Mutable state: the rung, the latency model, misses, and the up-timer.

    rung: index into the ladder, 0 is the best. changes: how often it has changed.
    """

    def __init__(self, settings: FallbackSettings) -> None:
        self._settings = settings
        self.model = LatencyModel(settings.latency_window)
        self.rung = 0
        self.changes = 0
        self._ladder: tuple[int, ...] = ()
        self._misses: deque[float] = deque(maxlen=8)  # that no answer has confirmed yet
        self._suspects = 0  # misses that an answer followed within a second, since this size last came through
        self._changed_at = self._upgraded_at = -math.inf
        self._good_since = math.inf
        self._wait_s = settings.rung_up_s

    @property
    def smallest(self) -> int:
        """The rung that probes use."""
        return max(0, len(self._ladder) - 1)

    def expected_ms(self, rung: int) -> float | None:
        """p95 of a frame's age at arrival when sent at this rung; None as long as too little is known."""
        return self.model.predict_ms(self._ladder[rung]) if 0 <= rung < len(self._ladder) else None

    def use_ladder(self, ladder: tuple[int, ...]) -> None:
        """Bytes of each rung, best first, as perception announced them."""
        if ladder != self._ladder:
            self._ladder = ladder
            self.rung = min(self.rung, self.smallest)

    def learn(self, now: float, lesson: Lesson, budget_ms: float) -> None:
        """One call has ended; budget_ms: what an answer may take."""
        if lesson.chunk is not None:
            self._met(now, self.model.add(now, lesson.chunk), lesson.chunk.rung, budget_ms)
        elif lesson.outcome is Outcome.MISSED:
            self._good_since = math.inf
            self.model.interrupt()
            if lesson.rung is not None and lesson.rung < self.smallest:
                self._misses.append(now)

    def _met(self, now: float, sample: Sample, rung: int, budget_ms: float) -> None:
        """An answer: the only moment at which there is something new to decide on."""
        if len(self._ladder) < 2:
            return
        self._suspects += sum(now - at <= _MISS_MEMORY_S for at in self._misses)
        self._misses.clear()
        if now - self._upgraded_at >= self._settings.rung_trial_s and self._upgraded_at > -math.inf:
            self._wait_s, self._upgraded_at = max(self._settings.rung_up_s, self._wait_s / _FACTOR), -math.inf
        if now - self._changed_at >= _CHANGE_S:
            target = self._lower(sample, budget_ms)
            if target is not None:
                self._go_down(now, target)
            elif self.rung > 0:
                self._consider_up(now, budget_ms)
        server_alone = sample.age_ms - sample.network_ms > self._settings.rung_down_at * budget_ms
        if rung <= self.rung or server_alone:  # this size does come through, or it was not the size
            self._suspects = 0

    def _lower(self, sample: Sample, budget_ms: float) -> int | None:
        """The rung to go down to, None to stay."""
        if self.rung >= self.smallest:
            return None
        limit_ms = self._settings.rung_down_at * budget_ms
        below = range(self.rung + 1, self.smallest)
        expected = self.model.predict_ms(self._ladder[self.rung])
        if expected is not None and expected > limit_ms and self._saves(self.rung, self.rung + 1):
            return next((rung for rung in below if self._fits_or_saves_no_more(rung, limit_ms)), self.smallest)
        if self._suspects >= _MISSES and self._to_blame(sample, limit_ms):
            return next((rung for rung in below if sample.at_size(self._ladder[rung], None) <= limit_ms), self.smallest)
        return None

    def _to_blame(self, sample: Sample, limit_ms: float) -> bool:
        """Whether size can explain misses just before this answer: the server alone does not, and the link would."""
        server_alone = sample.age_ms - sample.network_ms > limit_ms
        return not server_alone and sample.at_size(self._ladder[self.rung], None) > limit_ms

    def _fits_or_saves_no_more(self, rung: int, limit_ms: float) -> bool:
        expected = self.model.predict_ms(self._ladder[rung])
        return expected is None or expected <= limit_ms or not self._saves(rung, rung + 1)

    def _saves(self, better: int, worse: int) -> bool:
        return self.model.saving_ms(self._ladder[better], self._ladder[worse]) > self._settings.rung_saves_ms

    def _consider_up(self, now: float, budget_ms: float) -> None:
        limit_ms = self._settings.rung_up_at * budget_ms
        if self._worth_a_blind_trial(now, limit_ms):
            self._go_up(now)
            return
        expected = self.model.predict_ms(self._ladder[self.rung - 1])
        fits = expected is not None and expected < limit_ms
        # A smaller payload that turned out to save nothing is given up again, however slow the answers are.
        useless = self.model.measured() and not self._saves(self.rung - 1, self.rung)
        if not (fits or useless):
            self._good_since = math.inf
            return
        self._good_since = min(self._good_since, now)
        if now - self._good_since >= self._wait_s:
            self._go_up(now)

    def _worth_a_blind_trial(self, now: float, limit_ms: float) -> bool:
        """After a long time at one size nothing is known of the others: on a link with delay none would ever fit."""
        expected = self.model.predict_ms(self._ladder[self.rung])
        fits = expected is not None and expected < limit_ms
        return fits and not self.model.measured() and now - self._changed_at >= max(_BLIND_S, self._wait_s)

    def _go_down(self, now: float, target: int) -> None:
        if now - self._upgraded_at < self._settings.rung_trial_s:
            self._wait_s = min(max(_FAILED_S, _FACTOR * self._wait_s), self._settings.rung_up_max_s)
            self._upgraded_at = -math.inf
        self._change(now, target)

    def _go_up(self, now: float) -> None:
        self._change(now, self.rung - 1)
        self._upgraded_at = now

    def _change(self, now: float, rung: int) -> None:
        self.rung, self._changed_at, self._good_since = rung, now, math.inf
        self._suspects = 0
        self.changes += 1
