"""The fallback machine: walks the table, and emits one command a tick and one hint to perception."""

from __future__ import annotations

import math
import random

from splitvla_edge.fallback.account import Account
from splitvla_edge.fallback.guards import EPSILON_S, GUARDS_IN, camera_stale, not_ready
from splitvla_edge.fallback.local_slot import LocalSlot
from splitvla_edge.fallback.messages import Command, Hint, TickInputs
from splitvla_edge.fallback.motion import blend_weight, shape, tail_weight
from splitvla_edge.fallback.rungs import RungChooser
from splitvla_edge.fallback.settings import FallbackSettings
from splitvla_edge.fallback.table import REMOTE, TRANSITIONS, Event, Mode, State
from splitvla_edge.fallback.timers import Absence, DrainTimer, Stillness
from splitvla_edge.robots.action_space import ActionSpace, Kind

_MOVING = REMOTE | {State.WAIT, State.LOCAL}
_PROBING = (State.HOLD, State.LOCAL)
_LONG_PROBE = 4  # every fourth probe in a row that fails has the full deadline: answers may take that long now


class FallbackMachine:
    """Owned by the control process and ticked by one thread. What the guards read is public; nobody else writes it.

    Mutable state: state and cause; account, chooser, local (of replies, payload, local policy); hold_time, local_time;
    held_since, settled_at (of the last hold, or of a robot that took no commands); stillness; last_values (the last
    action sent; of an absolute space the set point, which is None while nobody knows where the arm was left); stale,
    unready (of this tick's camera, robot and perception).
    """

    def __init__(
        self,
        settings: FallbackSettings,
        space: ActionSpace,
        dt_s: float,
        *,
        accept_clipped: bool = False,
        mode: Mode = Mode.NORMAL,
        seed: int = 0,
    ) -> None:
        """dt_s: control period. accept_clipped: execute actions of which tokens had to be clipped into the bins.

        seed: of the probes' jitter; with the same seed and the same inputs come the same commands and hints.
        """
        self.settings, self.space, self.dt_s, self.mode = settings, space, dt_s, mode
        self.limits = space.step_limits(dt_s)
        self.state, self.cause = State.INIT, "start"
        self.account: Account = Account(settings, space.dims, accept_clipped)
        self.chooser = RungChooser(settings)
        self.local = LocalSlot(settings, space.dims, dt_s)
        self.stillness = Stillness(settings.still_ms / 1e3, settings.still_tolerance)
        self.last_values: tuple[float, ...] | None = None
        self.chunk_length = 1
        self._jitter = random.Random(seed)
        self._gap_s, self._gap_of_call = 0.0, 0
        self._tick = 0
        self._now = -math.inf
        self._absolute = space.kind is Kind.ABSOLUTE
        self._away_since = math.inf  # the robot takes no commands since then; inf: it does
        self._gripper: float | None = None  # nobody knows yet what the gripper does, so that no target is sent
        self._gripper_commanded = False
        self._stale, self._unready = Absence(), Absence()
        self.stale: bool = True
        self.unready: bool = True
        self._begin_epoch(-math.inf)

    @property
    def epoch(self) -> int:
        return self.account.epoch

    @property
    def highest_sequence(self) -> int:
        return self.account.highest_sequence

    def tick(self, now: float, inputs: TickInputs) -> Command:
        """The command for this moment; `now` never falls."""
        self._tick += 1
        self._estopped |= inputs.estop
        self._spend_time(now)
        self._see_robot(now, inputs)
        self._absorb(now, inputs)
        self._move(now, self._event(now, inputs), inputs)
        if self.state in REMOTE:
            return self._act(now)
        if self.state is State.LOCAL and (action := self.local.take()) is not None:
            return self._act_locally(now, *action)
        return self._hold(now, inputs)

    def hint(self) -> Hint:
        """What perception must know for its next call."""
        settings, probing = self.settings, self._probing()
        if probing and self.account.calls != self._gap_of_call:  # a new gap for every probe, and not for every tick
            self._gap_of_call = self.account.calls
            self._gap_s = settings.probe_gap_ms / 1e3 * (1.0 + 0.5 * self._jitter.random())
        low_s, high_s = settings.deadline_min_ms / 1e3, settings.deadline_max_ms / 1e3
        forced = self.mode is Mode.FORCED_LOCAL
        return Hint(
            epoch=self.epoch,
            sequence_floor=self.highest_sequence,
            max_age_s=self.max_age_s(),
            deadline_min_s=low_s,
            deadline_max_s=max(low_s, self._probe_deadline_s(high_s)) if probing else high_s,
            enabled=self.state is not State.SAFE_STOP and not forced,
            rung=self.chooser.smallest if probing else self.chooser.rung,
            gap_s=self._gap_s if probing else 0.0,
            local=forced or probing,
        )

    def max_age_s(self) -> float:
        """The oldest frame that an action of the agreed model may come from."""
        return self.settings.max_age_s(self.dt_s, self.chunk_length)

    def horizon_s(self, now: float) -> float:
        """For how long the actions at hand last, if no other comes."""
        chunk, account = self.account.chunk, self.account
        if chunk is None or not account.has_action():
            return 0.0
        return max(0.0, min(self._actions_left(now) * self.dt_s, chunk.captured_at + self.max_age_s() - now))

    def cleared(self, now: float) -> bool:
        """Whether what may have caused the hold has been gone for as long as it must."""
        settings, stale = self.settings, self._stale
        camera = stale.lasted_s(now) + EPSILON_S >= settings.camera_clear_ms / 1e3
        return (
            camera
            and stale.frames >= settings.camera_clear_frames
            and self._unready.lasted_s(now) + EPSILON_S >= settings.ready_clear_ms / 1e3
        )

    def late(self, now: float) -> bool:
        """Whether the next answer takes a tick longer than 95 % of the last ones did, or nobody asks for one."""
        flight = self.account.flight
        if flight is None:
            return now - self.account.met_at > self.settings.next_call_ms / 1e3 + EPSILON_S
        expected_ms = self.chooser.expected_ms(flight.rung)
        return expected_ms is not None and now - flight.captured_at > expected_ms / 1e3 + self.dt_s

    def local_healthy(self, now: float) -> bool:
        """Whether the local policy is fit to act; an operator who wants it needs no licence."""
        return self.local.healthy(now, self.settled_at, licence_needed=self.mode is not Mode.FORCED_LOCAL)

    def _begin_epoch(self, now: float) -> None:
        self.account.begin_epoch(now)
        self.local.forget()
        self.hold_time = DrainTimer(self.settings.hold_to_stop_s, self.settings.hold_refill)
        self.local_time = DrainTimer(self.settings.local_to_stop_s, self.settings.hold_refill)
        self.held_since = self.settled_at = now
        self._resumed_at = -math.inf
        self._estopped = False
        self._gap_of_call = 0

    def _spend_time(self, now: float) -> None:
        elapsed_s = max(0.0, now - self._now) if math.isfinite(self._now) else 0.0
        self._now = now
        if self.state is State.HOLD:
            self.hold_time.drain(elapsed_s)
        elif self.state is State.LOCAL:
            self.local_time.drain(elapsed_s)
        elif self.state in (State.NOMINAL, State.DEGRADED, State.WAIT):
            self.hold_time.fill(elapsed_s)
            self.local_time.fill(elapsed_s)

    def _see_robot(self, now: float, inputs: TickInputs) -> None:
        """A robot that takes no commands may be moved by hand or homing, and the scene may be another one after it."""
        if not self._gripper_commanded and inputs.gripper is not None and math.isfinite(inputs.gripper):
            self._gripper = inputs.gripper
        if inputs.estop or not inputs.robot_ready or not inputs.enabled:
            self._away_since = min(self._away_since, now)
            away_s = now - self._away_since
            self._forget_scene(now)
            if self._absolute and (inputs.estop or not inputs.enabled or away_s >= self.settings.ready_clear_ms / 1e3):
                self.last_values = None
            return
        self._away_since = math.inf
        if self._gripper is None:
            self._gripper = self.space.gripper_start  # a robot that takes commands and does not say its opening
        if self._absolute and self.last_values is None:
            # Once, and not after a driver's hiccup: a set point that follows a sagging arm would take it down.
            self.last_values = self.space.set_point_at(inputs.position)

    def _absorb(self, now: float, inputs: TickInputs) -> None:
        if inputs.ready is not None:
            self.chunk_length = inputs.ready.chunk_length
            self.chooser.use_ladder(inputs.ready.ladder)
        budget_ms = min(self.max_age_s() * 1e3, self.settings.deadline_max_ms)
        replies = () if self.mode is Mode.FORCED_LOCAL else inputs.replies
        for lesson in self.account.absorb(now, replies):
            self.chooser.learn(now, lesson, budget_ms)
        if inputs.local is not None:
            self.local.see(inputs.local, self.account.since_executed(inputs.local.captured_at))
        self.stillness.see(now, inputs.position)
        self.stale, self.unready = camera_stale(self, now, inputs), not_ready(self, now, inputs)
        self._stale.see(now, self.stale, inputs.frame_at)
        self._unready.see(now, self.unready, inputs.frame_at)

    def _event(self, now: float, inputs: TickInputs) -> Event:
        """The worst one of this tick."""
        for event, holds in GUARDS_IN[self.state]:
            if holds(self, now, inputs):
                return event
        raise AssertionError("the last guard always holds")

    def _move(self, now: float, event: Event, inputs: TickInputs) -> None:
        before, transition = self.state, TRANSITIONS[self.state, event]
        self.state = transition.to
        if not (before is State.SAFE_STOP and self.state is State.SAFE_STOP):
            self.cause = transition.cause  # a latched stop keeps the cause that latched it
        if event is Event.RESET:
            self.account.epoch += 1
            self.last_values = None
            self._begin_epoch(now)
            self._settle(now, event)
        elif event is Event.TOO_OLD:
            self.account.drop_chunk()
        if self.state is before:
            return
        if self.state in (State.INIT, State.HOLD):
            self._settle(now, event)
        elif self.state is State.LOCAL:
            self.account.usable_after = math.inf  # what was seen while the local policy moved the robot never counts
        if self.state in _MOVING and before not in _MOVING:
            self._resumed_at = now
            if self._absolute and inputs.position:
                self.last_values = inputs.position  # motion begins where JUMP has looked, not where it once ended

    def _settle(self, now: float, event: Event) -> None:
        """A hold begins: what was known of the scene is void, and the link must prove itself, unless it just did."""
        self._forget_scene(now)
        if event is not Event.RELIEVED:
            self.account.streak = 0
        self.held_since = now

    def _forget_scene(self, now: float) -> None:
        """Only frames captured from a settling time after now count."""
        self.account.drop_chunk()
        self.settled_at = self.account.usable_after = now + self.settings.settle_ms / 1e3

    def _act(self, now: float) -> Command:
        chunk, index = self.account.chunk, self.account.cursor
        assert chunk is not None  # the guards of every event that leads to a state of REMOTE
        weight = blend_weight(now - self._resumed_at, self.dt_s, self.settings.blend_ms / 1e3)
        if self.state is State.COAST:
            weight = min(weight, tail_weight(self._actions_left(now), self.settings.tail_actions))
        values = shape(self.space, chunk.actions[index], self.last_values, self.limits, weight=weight)
        self.account.cursor += 1
        return self._moved(now, values, index, chunk.sequence, chunk.captured_at)

    def _act_locally(self, now: float, index: int, action: tuple[float, ...]) -> Command:
        chunk, settings = self.local.chunk, self.settings
        assert chunk is not None  # it gave the action
        weight = blend_weight(now - self._resumed_at, self.dt_s, settings.blend_ms / 1e3)
        values = shape(
            self.space,
            action,
            self.last_values,
            self.limits,
            weight=weight,
            speed_share=settings.local_speed,
        )
        return self._moved(now, values, index, None, chunk.captured_at)

    def _moved(
        self, now: float, values: tuple[float, ...], index: int, sequence: int | None, captured_at: float
    ) -> Command:
        self.account.note_executed(now)
        self.last_values = values
        if self.space.gripper is not None:
            self._gripper, self._gripper_commanded = values[self.space.gripper], True
        return Command(
            tick=self._tick,
            state=self.state,
            cause=self.cause,
            values=values,
            epoch=self.epoch,
            motion=True,
            sequence=sequence,
            index=index,
            age_s=now - captured_at,
        )

    def _hold(self, now: float, inputs: TickInputs) -> Command:
        ramp = self._ramp(now)
        return Command(
            tick=self._tick,
            state=self.state,
            cause=self.cause,
            values=self.space.hold(self.last_values, inputs.position, self._gripper, ramp),
            epoch=self.epoch,
            stop=self.state is State.SAFE_STOP and ramp == 0.0,
        )

    def _ramp(self, now: float) -> float:
        """Share of the last velocity; an e-stop leaves no time for a ramp."""
        last = self.account.last_executed_at()
        if self.space.kind is not Kind.VELOCITY or last is None or self._estopped:
            return 0.0
        return max(0.0, 1.0 - (now - last) * 1e3 / max(self.settings.ramp_ms, 1e-3))

    def _actions_left(self, now: float) -> int:
        """Of the chunk at hand, this one included, before it ends or is too old."""
        chunk = self.account.chunk
        if chunk is None:
            return 0
        limit_s = self.settings.max_age_s(self.dt_s, len(chunk.actions)) - (now - chunk.captured_at)
        return min(len(chunk.actions) - self.account.cursor, int((limit_s + EPSILON_S) / self.dt_s) + 1)

    def _probing(self) -> bool:
        """Whether calls only test the link; also before the first answer, when the first calls were in vain."""
        in_vain = self.state is State.INIT and self.account.misses >= self.settings.resume_replies
        return self.state in _PROBING or in_vain

    def _probe_deadline_s(self, high_s: float) -> float:
        """Short, because a probe that began before the link came back only costs time."""
        if self.account.misses % _LONG_PROBE == _LONG_PROBE - 1:
            return high_s
        expected_ms = self.chooser.expected_ms(self.chooser.smallest) or 0.0
        return min(high_s, max(self.settings.probe_deadline_ms, 1.5 * expected_ms) / 1e3)
