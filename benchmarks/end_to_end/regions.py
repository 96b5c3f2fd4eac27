"""Which way is the fastest on which link? Measured here, or computed from durations that a user gives. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.end_to_end.alternatives import Measured
from benchmarks.end_to_end.ways import Family
from splitvla_shared.errors import ConfigError

FAMILIES = tuple(Family)
PICTURES = (Family.JPEG, Family.RAW)
# Where the model does not fit the robot, and where pictures may not leave it either.
SENT = tuple(family for family in Family if family is not Family.LOCAL)
NO_PICTURES = tuple(family for family in SENT if family not in PICTURES)
RATES = np.geomspace(1.0, 1000.0, 181)
RTTS = np.geomspace(1.0, 100.0, 121)


@dataclass(frozen=True, slots=True)
class Cost:
    """One way: milliseconds whatever the link, and bytes up. family: which of FAMILIES it belongs to."""

    name: str
    family: Family
    fixed_ms: float
    up_bytes: int


@dataclass(frozen=True, slots=True)
class Regions:
    """winner: index into FAMILIES, way: into names, latency_ms: of the winner; each (len(RTTS), len(RATES))."""

    winner: npt.NDArray[np.int64]
    way: npt.NDArray[np.int64]
    names: tuple[str, ...]
    latency_ms: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Durations of somebody else's machines, milliseconds. robot_backbone None: it does not fit the robot.

    codec, jpeg: packing and unpacking of an embedding and of a picture. other: protocol and resize, the same for all.
    """

    robot_encode: float
    server_encode: float
    backbone: float
    robot_backbone: float | None = None
    codec: float = 6.0
    jpeg: float = 2.0
    other: float = 6.0

    def costs(self, rungs: Mapping[str, int], jpeg_bytes: int, raw_bytes: int) -> list[Cost]:
        """rungs: bytes of each rung by name, the exact one first."""
        on_server = self.server_encode + self.backbone + self.other
        split = self.robot_encode + self.codec + self.backbone + self.other
        costs = [
            Cost("JPEG", Family.JPEG, on_server + self.jpeg, jpeg_bytes),
            Cost("raw", Family.RAW, on_server, raw_bytes),
        ]
        for index, (name, size) in enumerate(rungs.items()):
            costs.append(Cost(name, Family.LOSSY if index else Family.SPLIT, split, size))
        if self.robot_backbone is not None:
            costs.append(Cost("on the robot", Family.LOCAL, self.robot_encode + self.robot_backbone + self.other, 0))
        return costs


def parse_what_if(text: str) -> WhatIf:
    """ "robot-encode=60,server-encode=15,backbone=150". Raises ConfigError."""
    known = tuple(WhatIf.__slots__)
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        field = name.strip().replace("-", "_")
        try:
            values[field] = float(number)
        except ValueError:
            values[field] = -1.0
        if field not in known or not 0 <= values[field] < 1e6:
            names = ", ".join(each.replace("_", "-") for each in known)
            raise ConfigError(f"--what-if {part!r}: expected NAME=MILLISECONDS with a name of {names}")
    try:
        return WhatIf(**values)
    except TypeError as error:
        raise ConfigError("--what-if needs robot-encode, server-encode and backbone, in milliseconds") from error


def measured_costs(measured: Sequence[Measured]) -> list[Cost]:
    return [Cost(way.name, way.family, way.total.p50, way.up_bytes) for way in measured]


def regions(costs: Sequence[Cost], allowed: Sequence[Family] = FAMILIES) -> Regions:
    """Lowest latency over the grid of RATES x RTTS; allowed: the families that may be chosen."""
    chosen = [cost for cost in costs if cost.family in allowed]
    times = np.stack([_latency_ms(cost) for cost in chosen])
    best = times.argmin(axis=0)
    families = np.array([FAMILIES.index(cost.family) for cost in chosen])
    return Regions(families[best], best, tuple(cost.name for cost in chosen), times.min(axis=0))


def _latency_ms(cost: Cost) -> npt.NDArray[np.float64]:
    if not cost.up_bytes:
        return np.full((len(RTTS), len(RATES)), cost.fixed_ms)
    return cost.fixed_ms + RTTS[:, None] + cost.up_bytes * 8e-3 / RATES[None, :]
