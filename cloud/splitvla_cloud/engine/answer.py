"""One answer as it grows: which ids a forward pass is fed, and how many of those it predicts are kept.

Rules of this file: pure, ids only. A draft is a guess of the answer: it is fed as if it had been said, and every
prediction counts only while all that was fed before it has turned out right. So whatever the draft holds, the answer is
what feeding back one id at a time would have given; after a wrong guess the rest of the draft is tried again behind the
right id, because an action differs from the last one in few of its dimensions. Verification of a draft in one pass:
Leviathan et al. 2023 (arXiv 2211.17192), here for greedy decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

from splitvla_shared.errors import EarlyStop, ServerFault


class Answer:
    """`count` greedy ids. `ids` are those that are certain so far.

    `take` raises EarlyStop when an id of `eos` comes before the last one, ServerFault when a logit was not finite.
    """

    def __init__(self, count: int, draft: Sequence[int], eos: frozenset[int]) -> None:
        self.ids: list[int] = []
        self._count, self._draft, self._eos = count, tuple(draft[:count]), eos

    @property
    def done(self) -> bool:
        return len(self.ids) == self._count

    @property
    def accepted(self) -> int:
        """Ids of the draft that the answer kept, at whatever place."""
        return sum(said == guess for said, guess in zip(self.ids, self._draft, strict=False))

    def guesses(self) -> tuple[int, ...]:
        """The draft's ids that a pass is fed behind what is certain: the last id of an answer is never fed."""
        return self._draft[len(self.ids) : self._count - 1]

    def take(self, predicted: Sequence[int], finite: Sequence[bool]) -> None:
        """predicted[i]: the greedy id behind all that is certain and `guesses()[:i]`; one more than there are guesses.

        finite[i]: whether all logits of that prediction were finite.
        """
        guesses = self.guesses()
        for index, (said, sound) in enumerate(zip(predicted[: len(guesses) + 1], finite, strict=False)):
            if not sound:
                raise ServerFault(
                    f"a logit at position {len(self.ids) + 1} is not finite: an embedding beyond what this precision "
                    "holds, damaged weights, or a GPU fault"
                )
            self.ids.append(said)
            if self.done:
                return
            if said in self._eos:
                raise EarlyStop(
                    f"the model ended its answer at position {len(self.ids)} of {self._count}; "
                    "check that instruction and action statistics belong to this model"
                )
            if index < len(guesses) and said != guesses[index]:
                return
