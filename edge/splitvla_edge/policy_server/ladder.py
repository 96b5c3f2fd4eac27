"""Which payload a request's frame is sent with: the fallback machine's choice, without its machine."""

from __future__ import annotations

from collections.abc import Sequence

from splitvla_edge.fallback import Chunk, Outcome
from splitvla_edge.fallback.account import Lesson
from splitvla_edge.fallback.rungs import RungChooser
from splitvla_edge.fallback.settings import FallbackSettings
from splitvla_edge.outcomes import outcome_of
from splitvla_shared.errors import SplitVLAError
from splitvla_shared.nouns import ActionChunk
from splitvla_shared.rungs import Rung


class PayloadLadder:
    """Owned by the policy's thread. Mutable state: the chooser, and whether the last answer was missed.

    The machine's rules hold: late answers lead to smaller payloads where the link is to blame, good ones back up; after
    a miss the smallest is sent, as the machine's probes are, because only an answer tells what the link can do.
    """

    def __init__(self, rungs: Sequence[Rung]) -> None:
        self._chooser = RungChooser(FallbackSettings())
        self._chooser.use_ladder(tuple(rung.wire_bytes for rung in rungs))
        self._missed = False

    def choose(self) -> int:
        """Index of a rung, 0 is the best."""
        return self._chooser.smallest if self._missed else self._chooser.rung

    def met(self, now: float, arrived_at: float, chunk: ActionChunk, rung: int, budget_s: float) -> None:
        """An answer came at `now`, for the request that came at arrived_at; budget_s: what it might take."""
        self._missed = False
        reply = Chunk(
            sequence=0,
            epoch=0,
            captured_at=arrived_at,
            finished_at=now,
            actions=(),
            stages=chunk.stages,
            wire_bytes=chunk.wire_bytes,
            rung=rung,
            hints=chunk.hints,
        )
        self._chooser.learn(now, Lesson(Outcome.MET, rung, reply), budget_s * 1e3)

    def failed(self, now: float, error: SplitVLAError, rung: int, budget_s: float) -> None:
        """No answer came. Only a deadline that passed says something about payloads."""
        outcome = outcome_of(error)
        self._missed = self._missed or outcome is Outcome.MISSED
        self._chooser.learn(now, Lesson(outcome, rung), budget_s * 1e3)
