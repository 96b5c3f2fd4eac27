"""The machine's whole state as plain JSON values and back, so that a recording need not begin with the run.

Only the classes listed here are read back; settings and action space are not state, and stay those of the machine that
the state is put into.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from typing import Any

from splitvla_edge.fallback.account import Account
from splitvla_edge.fallback.latency import LatencyModel, Sample
from splitvla_edge.fallback.local_slot import LocalSlot
from splitvla_edge.fallback.machine import FallbackMachine
from splitvla_edge.fallback.messages import Asked, Chunk, LocalChunk
from splitvla_edge.fallback.rungs import RungChooser
from splitvla_edge.fallback.settings import FallbackSettings
from splitvla_edge.fallback.table import Mode, State
from splitvla_edge.fallback.timers import Absence, DrainTimer, Stillness
from splitvla_edge.robots.action_space import ActionSpace
from splitvla_shared.nouns import ServerHints, StageTimes

_VALUES = {each.__name__: each for each in (Asked, Chunk, LocalChunk, Sample, StageTimes, ServerHints, DrainTimer)}
_PARTS = (Account, RungChooser, LatencyModel, LocalSlot, Stillness, Absence)
_NOT_STATE = (FallbackSettings, ActionSpace, Mode)


def take(machine: FallbackMachine) -> Any:
    """The state as lists, dicts, numbers and texts."""
    return _take_fields(machine)


def restore(machine: FallbackMachine, state: Any) -> None:
    """Put a state that `take` gave into a machine of the same settings. Raises ValueError on anything else."""
    try:
        _restore_fields(machine, state)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"this is no state of the machine: {error!r}") from error


def _take_fields(part: Any) -> dict[str, Any]:
    return {name: _take(value) for name, value in vars(part).items() if not isinstance(value, _NOT_STATE)}


def _take(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, State):
        return {"state": value.value}
    if isinstance(value, tuple):
        return {"tuple": [_take(each) for each in value]}
    if isinstance(value, deque):
        return {"deque": [_take(each) for each in value], "most": value.maxlen}
    if isinstance(value, dict):
        return {"dict": [[_take(key), _take(each)] for key, each in value.items()]}
    if isinstance(value, random.Random):
        return {"random": _take(value.getstate())}
    if isinstance(value, _PARTS):
        return {"part": _take_fields(value)}
    fields = {each.name: _take(getattr(value, each.name)) for each in dataclasses.fields(value)}
    return {"value": type(value).__name__, "fields": fields}


def _restore_fields(part: Any, state: dict[str, Any]) -> None:
    names = {name for name, value in vars(part).items() if not isinstance(value, _NOT_STATE)}
    if set(state) != names:
        raise ValueError(f"a {type(part).__name__} of another version: {sorted(set(state) ^ names)}")
    for name, each in state.items():
        setattr(part, name, _restore(each, getattr(part, name)))


def _restore(value: Any, old: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "state" in value:
        return State(value["state"])
    if "tuple" in value:
        return tuple(_restore(each, None) for each in value["tuple"])
    if "deque" in value:
        return deque((_restore(each, None) for each in value["deque"]), value["most"])
    if "dict" in value:
        return {_restore(key, None): _restore(each, None) for key, each in value["dict"]}
    if "random" in value:
        source = random.Random()
        source.setstate(_restore(value["random"], None))
        return source
    if "part" in value:
        _restore_fields(old, value["part"])
        return old
    fields = {name: _restore(each, None) for name, each in value["fields"].items()}
    return _VALUES[value["value"]](**fields)
