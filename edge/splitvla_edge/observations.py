"""Is this observation one that the model can take? Asked before the encoder runs."""

from __future__ import annotations

import numpy as np

from splitvla_shared.errors import ObservationError
from splitvla_shared.limits import MAX_STATE_DIMS, check_instruction
from splitvla_shared.nouns import FloatArray, Observation
from splitvla_shared.spec import ModelSpec


def check_observation(observation: Observation, spec: ModelSpec) -> None:
    """Raises ObservationError; each image is looked at where it is made square."""
    check_instruction(observation.instruction)
    _check_state(observation.state)
    if not 1 <= len(observation.images) <= spec.max_cameras:
        raise ObservationError(f"{len(observation.images)} camera images; this model takes 1..{spec.max_cameras}")


def _check_state(state: FloatArray | None) -> None:
    if state is None:
        return
    if not isinstance(state, np.ndarray) or state.dtype.kind not in "fiu":
        kind = state.dtype if isinstance(state, np.ndarray) else type(state).__name__
        raise ObservationError(f"state is {kind}; expected an array of at most {MAX_STATE_DIMS} finite numbers")
    if state.ndim != 1 or state.size > MAX_STATE_DIMS or not np.isfinite(state).all():
        raise ObservationError(f"state has shape {state.shape}; expected at most {MAX_STATE_DIMS} finite numbers")
