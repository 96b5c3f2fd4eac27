"""The fallback machine, perception and a link on simulated time: pure, no process, no socket, no sleep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from splitvla_edge.fallback import (
    Asked,
    Chunk,
    Command,
    FallbackSettings,
    Hint,
    LocalChunk,
    Miss,
    Mode,
    Outcome,
    Ready,
    Reply,
    State,
    TickInputs,
    deadline_s,
)
from splitvla_edge.fallback.machine import FallbackMachine
from splitvla_edge.robots.action_space import ActionSpace, Kind
from splitvla_shared.nouns import StageTimes

SPACE = ActionSpace(Kind.DELTA_EE, (-0.1,) * 6 + (0.0,), (0.1,) * 6 + (1.0,), gripper=6, gripper_start=1.0)
ACTION = (0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
LADDER = (2_097_152, 1_049_088, 282_624, 24_000)


@dataclass(frozen=True, slots=True)
class Way:
    """What the link and the server do with one call: milliseconds, infinite when it is lost."""

    network_ms: float
    server_ms: float = 60.0


Link = Callable[[float, int], Way]  # when the call begins, how many bytes it sends


@dataclass(frozen=True, slots=True)
class Moment:
    """One tick: the command, and the rung that perception was told to use."""

    now: float
    command: Command
    hint: Hint


@dataclass(slots=True)
class Perception:
    """One call in flight, the newest frame once, probes apart: as perception.py does it, on simulated time.

    Mutable state: the call in flight and the last frame, sequence and beginning of a call.
    """

    link: Link
    chunk_length: int
    fps: float
    encode_ms: float
    ladder: tuple[int, ...]
    in_flight: tuple[float, Reply] | None = None
    sequence: int = 0
    last_frame: int = -1
    called_at: float = -math.inf
    free_at: float = 0.0

    def until(self, now: float, hint: Hint | None) -> Iterator[Reply]:
        """What it says up to `now`, in order."""
        while True:
            if self.in_flight is not None:
                ends_at, reply = self.in_flight
                if ends_at > now:
                    return
                self.in_flight = None
                yield reply
            begins = self._next_call(hint)
            if begins is None or begins > now or hint is None:
                return
            yield self._call(begins, hint)

    def _next_call(self, hint: Hint | None) -> float | None:
        if hint is None or not hint.enabled:
            return None
        next_frame_at = (self.last_frame + 1) / self.fps
        return max(self.free_at, next_frame_at, self.called_at + hint.gap_s)

    def _call(self, now: float, hint: Hint) -> Asked:
        self.last_frame = int(now * self.fps + 1e-9)
        captured_at = self.last_frame / self.fps
        self.sequence = max(self.sequence, hint.sequence_floor) + 1
        self.called_at = now
        budget_s = deadline_s(now - captured_at, hint.max_age_s, hint.deadline_min_s, hint.deadline_max_s)
        size = self.ladder[hint.rung]
        way = self.link(now + self.encode_ms / 1e3, size)
        took_s = (self.encode_ms + way.network_ms + way.server_ms) / 1e3
        reply: Reply
        if took_s > budget_s:
            ends_at, reply = now + budget_s, Miss(self.sequence, Outcome.MISSED)
        else:
            ends_at = now + took_s
            stages = StageTimes(
                encode_ms=self.encode_ms,
                network_ms=way.network_ms,
                prefill_ms=way.server_ms,
                total_ms=took_s * 1e3,
            )
            reply = Chunk(
                self.sequence,
                hint.epoch,
                captured_at,
                ends_at,
                (ACTION,) * self.chunk_length,
                stages=stages,
                wire_bytes=size,
                rung=hint.rung,
            )
        self.in_flight, self.free_at = (ends_at, reply), ends_at
        return Asked(self.sequence, hint.epoch, captured_at, now + budget_s, hint.rung)


def simulate(
    link: Link,
    seconds: float,
    *,
    chunk_length: int = 1,
    dt_s: float = 0.05,
    fps: float = 30.0,
    encode_ms: float = 20.0,
    ladder: tuple[int, ...] = LADDER,
    settings: FallbackSettings | None = None,
    local: bool = False,
    mode: Mode = Mode.NORMAL,
    seed: int = 0,
    machine: type[FallbackMachine] = FallbackMachine,
) -> list[Moment]:
    """Every tick of so many seconds. local: a licensed local policy answers on every frame; the robot is still."""
    ticked = machine(settings or FallbackSettings(), SPACE, dt_s, mode=mode, seed=seed)
    perception = Perception(link, chunk_length, fps, encode_ms, ladder)
    hint: Hint | None = None
    calm = TickInputs(ready=Ready(SPACE.dims, chunk_length, "f" * 16, ladder), position=(0.0,) * SPACE.dims)
    moments = []
    for number in range(round(seconds / dt_s)):
        now = number * dt_s
        frame = int(now * fps + 1e-9)
        inputs = calm._replace(
            replies=tuple(perception.until(now, hint)),
            frame_at=frame / fps,
            local=LocalChunk(frame + 1, frame / fps, (ACTION,), 1.0, 100) if local else None,
        )
        command = ticked.tick(now, inputs)
        hint = ticked.hint()
        moments.append(Moment(now, command, hint))
    return moments


def shares(moments: list[Moment]) -> dict[State, float]:
    """State to its share of the ticks."""
    return {state: sum(m.command.state is state for m in moments) / len(moments) for state in State}


def off_remote(moments: list[Moment]) -> float:
    """Share of the ticks on which the server's actions do not control the robot."""
    held = {State.HOLD, State.LOCAL, State.SAFE_STOP, State.INIT}
    return sum(m.command.state in held for m in moments) / len(moments)


def recovery_ticks(moments: list[Moment], returns_at: float, dt_s: float = 0.05) -> float:
    """From the link's return to the first action of the server's; infinite when there is none."""
    moved = [m.now for m in moments if m.command.sequence is not None and m.now >= returns_at - 1e-9]
    return (moved[0] - returns_at) / dt_s if moved else math.inf


def rung_changes(moments: list[Moment]) -> int:
    """How often the rung of ordinary calls changed; probes are not calls of its choosing."""
    rungs = [m.hint.rung for m in moments if m.command.state not in (State.INIT, State.HOLD, State.LOCAL)]
    return sum(before != after for before, after in itertools.pairwise(rungs))
