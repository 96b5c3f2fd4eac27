"""An episode in a world that knows when a task is done, and the episodes of a run's folder."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitvla_edge.daemon.record import RUN_FILE
from splitvla_shared.errors import ConfigError


class Outcome(enum.IntEnum):
    """How an episode ended. LOST: the simulator died in it."""

    SUCCESS = 0
    TIMEOUT = 1
    LOST = 2


@dataclass(frozen=True, slots=True)
class Episode:
    """An episode that ended. steps: control steps from the first action on; motions: those of them with an action.

    overtaken: actions that were not executed because a newer command was there already.
    """

    number: int
    seed: int
    outcome: Outcome
    steps: int = 0
    motions: int = 0
    overtaken: int = 0

    def line(self) -> str:
        said = {Outcome.SUCCESS: "done", Outcome.TIMEOUT: "not done", Outcome.LOST: "lost, the simulator died"}
        return f"episode {self.number}, seed {self.seed}: {said[self.outcome]} in {self.steps} steps"

    def to_record(self) -> dict[str, int | str]:
        """As run.json holds it."""
        return dataclasses.asdict(self) | {"outcome": self.outcome.name}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Episode:
        """Raises KeyError or TypeError on anything that `to_record` did not make."""
        return cls(**{**record, "outcome": Outcome[record["outcome"]]})


def read_episodes(run_dir: Path) -> tuple[Episode, ...]:
    """The episodes that run.json says have ended. Raises ConfigError."""
    try:
        records = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))["episodes"]
        return tuple(Episode.from_record(record) for record in records)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{run_dir / RUN_FILE} holds no episodes ({error!r}); has the run ended?") from error
