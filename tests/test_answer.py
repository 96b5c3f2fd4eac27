"""Any draft gives plain greedy's answer: thousands of random models, drafts and ends of answer."""

from __future__ import annotations

import random

import pytest

from splitvla_cloud.engine.answer import Answer
from splitvla_shared.errors import EarlyStop, ServerFault


def model(seed: int, said: list[int]) -> int:
    """A greedy model of eight ids: the next one is any function of all that was said."""
    return random.Random(f"{seed}/{said}").randrange(8)


def plain(seed: int, count: int, eos: frozenset[int]) -> list[int] | str:
    said: list[int] = []
    while len(said) < count:
        said.append(model(seed, said))
        if said[-1] in eos and len(said) < count:
            return f"position {len(said)} of {count}"
    return said


def drafted(seed: int, count: int, eos: frozenset[int], draft: list[int]) -> tuple[list[int] | str, int]:
    answer, passes = Answer(count, draft, eos), 0
    while not answer.done:
        passes += 1
        fed = [*answer.ids, *answer.guesses()]
        predicted = [model(seed, fed[:end]) for end in range(len(answer.ids), len(fed) + 1)]
        try:
            answer.take(predicted, [True] * len(predicted))
        except EarlyStop as error:
            return next(part for part in str(error).split("; ") if "position" in part)[
                -len("position 1 of 7") :
            ], passes
    return answer.ids, passes


def test_five_thousand_random_drafts_give_plain_greedys_answer() -> None:
    chance = random.Random(0)
    for seed in range(5000):
        count = chance.randint(1, 9)
        eos = frozenset({0}) if chance.random() < 0.3 else frozenset()
        right = plain(seed, count, frozenset())
        draft = [n if chance.random() < 0.7 else chance.randrange(8) for n in right if isinstance(n, int)]
        found, passes = drafted(seed, count, eos, draft[: chance.randint(0, count)])
        assert found == plain(seed, count, eos)
        assert 1 <= passes <= count


def test_a_right_draft_takes_one_pass_and_one_wrong_id_takes_two() -> None:
    right = plain(3, 7, frozenset())
    assert isinstance(right, list)
    assert drafted(3, 7, frozenset(), right) == (right, 1)
    for place in range(6):
        wrong = [*right[:place], (right[place] + 1) % 8, *right[place + 1 :]]
        assert drafted(3, 7, frozenset(), wrong) == (right, 2)


def test_only_predictions_that_count_must_be_finite() -> None:
    answer = Answer(3, [5, 6, 7], frozenset())
    answer.take([4, 0, 0], [True, False, False])  # 4 contradicts the draft: what came after it is void
    assert answer.ids == [4]
    with pytest.raises(ServerFault, match="position 2 is not finite"):
        answer.take([1, 1], [False, True])
