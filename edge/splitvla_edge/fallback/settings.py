"""Every number of the fallback machine, with its default."""

from __future__ import annotations

from dataclasses import dataclass

from splitvla_edge.fallback.latency import MIN_REPLIES
from splitvla_shared.errors import ConfigError

_COUNTS = ("resume_replies", "non_finite_limit", "camera_clear_frames", "local_samples")
_SHARES = ("hold_refill", "rung_down_at", "rung_up_at", "local_speed", "local_agreement")
_TIMES = (0, 600_000)  # lowest and highest, as in the table
_RANGES = {
    **dict.fromkeys(_COUNTS, (1, 1000)),
    **dict.fromkeys(_SHARES, (0, 1)),
    # With fewer replies nothing is ever predicted: no chunk slows down, no rung is chosen.
    "latency_window": (MIN_REPLIES, 1000),
}


@dataclass(frozen=True, slots=True)
class FallbackSettings:
    """Times of the fallback machine, and its other numbers.

    Age and deadline. max_age_ms: oldest frame that a single action may come from. chunk_max_age_ms: cap of the same for
    chunks, which is otherwise their length plus two ticks. deadline_*_ms: bounds of a call's deadline. next_call_ms:
    how long after an answer the next call may begin before the action counts as lost.

    Hold. hold_to_stop_s: hold time left to SAFE_STOP; it drains at 1 and refills at hold_refill while actions flow, so
    that a flapping link gets there too. settle_ms: from the beginning of HOLD to the first frame that counts.
    ramp_ms: a velocity's way to zero. blend_ms: from holding to the policy's full action. tail_actions: the last
    actions of a chunk that slow down when nothing follows. camera_clear_*, ready_clear_ms: what must be good again for
    how long before a hold for that reason may end. probe_gap_ms: between the beginnings of two calls while holding,
    jittered by up to half. probe_deadline_ms: of such a call, unless answers are known to take longer.

    Payload. rung_down_at, rung_up_at: shares of the budget. rung_saves_ms: a smaller payload must save more than this.
    rung_up_s: how long the better one must look good; a minute after an upgrade that fails within rung_trial_s, and
    three times longer after the next ones, up to rung_up_max_s. latency_window: replies remembered, at least 8.

    Local policy. local_after_s: in HOLD before it may act. local_to_stop_s: time on it left to SAFE_STOP.
    local_speed: share of the speed limit it may use. local_agreement: share of its answers that agreed with the
    server's, over at least local_samples, without which it has no licence. still_ms, still_tolerance: the robot is
    still when no measured coordinate moved by more than that for that long.
    """

    max_age_ms: float = 300.0
    chunk_max_age_ms: float = 1000.0
    deadline_min_ms: float = 100.0
    deadline_max_ms: float = 500.0
    next_call_ms: float = 300.0
    camera_stale_ms: float = 500.0
    settle_ms: float = 100.0
    ramp_ms: float = 100.0
    blend_ms: float = 150.0
    tail_actions: float = 3.0
    hold_to_stop_s: float = 5.0
    hold_refill: float = 0.25
    resume_replies: int = 2
    camera_clear_ms: float = 200.0
    camera_clear_frames: int = 2
    ready_clear_ms: float = 200.0
    probe_gap_ms: float = 100.0
    probe_deadline_ms: float = 300.0
    non_finite_limit: int = 3
    overrun_ticks: float = 3.0
    rung_down_at: float = 0.8
    rung_up_at: float = 0.6
    rung_saves_ms: float = 20.0
    rung_up_s: float = 2.0
    rung_up_max_s: float = 180.0
    rung_trial_s: float = 60.0
    latency_window: int = 32
    local_after_s: float = 0.5
    local_to_stop_s: float = 30.0
    local_speed: float = 0.25
    local_agreement: float = 0.8
    local_samples: int = 20
    still_ms: float = 200.0
    still_tolerance: float = 0.005

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            low, high = _RANGES.get(name, _TIMES)
            if not low <= value <= high:
                raise ConfigError(f"fallback.{name} is {value}; expected {low}..{high}")
        for low_name, high_name in (
            ("deadline_min_ms", "deadline_max_ms"),
            ("rung_up_at", "rung_down_at"),
            ("rung_up_s", "rung_up_max_s"),
        ):
            if getattr(self, low_name) > getattr(self, high_name):
                raise ConfigError(
                    f"fallback.{low_name} {getattr(self, low_name)} is above {high_name} {getattr(self, high_name)}"
                )

    def max_age_s(self, dt_s: float, chunk_length: int) -> float:
        """The oldest that a command's frame may be: `min(K dt + 2 dt, chunk_max_age)`, or max_age for one action."""
        if chunk_length <= 1:
            return self.max_age_ms / 1e3
        return min((chunk_length + 2) * dt_s, self.chunk_max_age_ms / 1e3)
