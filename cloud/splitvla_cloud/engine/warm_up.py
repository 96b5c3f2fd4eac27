"""The passes that run before the first robot comes: they pay for lazy initialisation, and say what passes cost."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from splitvla_cloud.engine.interface import Frame, Outcome

_PROMPT = 24  # ids of a usual instruction: kernels are chosen and memory is laid out for such a length
_RUNS = 3  # of each number of frames; the quickest counts, because a run can only be disturbed for the worse
_BUDGET_S = 1.0  # a slow machine is not kept from serving: behind this only one robot's second run is still awaited


def warm_up(
    admit: Callable[[Frame], None],
    step: Callable[[], list[Outcome]],
    *,
    patches: tuple[int, int],
    dims: int,
    capacity: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Serve 1, 2, 4 … and `capacity` frames of usual length at once; seconds that the pass with these new ones took.

    patches: (n, width). admit: such that no id ends an answer, so that every step runs. Raises what ended a frame.
    """
    noise = np.random.default_rng(0).standard_normal(patches, dtype=np.float32) * np.float32(0.02)
    costs: dict[int, float] = {}
    started = clock()
    for count in _counts(capacity):
        for run in range(_RUNS):
            for session in range(count):
                admit(Frame(session, 0, (1,) * _PROMPT, noise, dims, float("inf")))
            began = clock()
            ended = step()
            costs[count] = min(costs.get(count, float("inf")), clock() - began)
            while len(ended) < count:
                ended += step()
            for outcome in ended:
                if isinstance(outcome.result, Exception):
                    raise outcome.result
            if run and clock() - started > _BUDGET_S:
                return costs
    return costs


def _counts(capacity: int) -> list[int]:
    doubled = [1 << power for power in range(capacity.bit_length()) if 1 << power < capacity]
    return [*doubled, capacity]
