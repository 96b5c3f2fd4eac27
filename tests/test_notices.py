"""The operator is told what went wrong, once, and that it is over."""

from __future__ import annotations

import io
import threading

import pytest

from splitvla_edge.daemon.notices import Notices, Story
from splitvla_edge.daemon.record import StepRecord
from splitvla_shared.nouns import StageTimes

QUIET = StepRecord(1, 0.2, "NOMINAL", "action executed", 1, (0.0,))
ANSWER = QUIET._replace(stages=StageTimes(total_ms=50.0))
LATE = QUIET._replace(state="HOLD", miss="MISSED", detail="frame 7: no answer in 150 ms")
AWAY = LATE._replace(miss="UNREACHABLE", detail="no server at host:1")
STOPPED = QUIET._replace(state="SAFE_STOP", cause="held too long")


def test_a_run_without_trouble_says_nothing() -> None:
    story = Story()
    assert [story.line(record) for record in (QUIET, ANSWER, QUIET)] == [None, None, None]


def test_each_kind_of_miss_is_told_once_until_answers_come_again() -> None:
    story = Story()
    told = [story.line(record) for record in (LATE, LATE, AWAY, AWAY, ANSWER, ANSWER, LATE)]
    assert told == [
        "HOLD, frame 7: no answer in 150 ms",
        None,
        "HOLD, no server at host:1",
        None,
        "NOMINAL, answers come again",
        None,
        "HOLD, frame 7: no answer in 150 ms",
    ]


def test_a_stop_is_told_once_with_its_cause_and_the_way_out() -> None:
    story = Story()
    assert story.line(STOPPED) == "SAFE_STOP, held too long; SIGUSR1 resets, SIGTERM ends the run"
    assert story.line(STOPPED) is None


def test_a_fault_of_the_robot_is_told_at_once_in_any_state_and_that_it_is_over() -> None:
    story = Story()
    for state in ("INIT", "HOLD"):
        faulty = QUIET._replace(state=state, cause="robot or perception not ready")
        out, slow = (f"robot my_arm:ARM: apply raised OSError: {what}" for what in ("cable 1", "timeout after 0.2 s"))
        faults = (out, out, "", slow, slow.replace("0.2", "0.3"), out)
        told = [story.line(faulty._replace(t=number / 10, fault=fault)) for number, fault in enumerate(faults)]
        assert told == [f"{state}, {out}", None, None, f"{state}, {slow}", None, None]
        well = [story.line(QUIET._replace(t=t)) for t in (0.6, 1.6, 1.7)]
        assert well == [None, "NOMINAL, the robot's calls succeed again", None]


def test_a_fault_that_stops_the_robot_is_told_with_the_stop() -> None:
    story, fault = Story(), "stop raised OSError"
    stopped = STOPPED._replace(detail=fault, fault=fault)
    assert [story.line(stopped), story.line(stopped)] == [
        "SAFE_STOP, held too long: stop raised OSError; SIGUSR1 resets, SIGTERM ends the run",
        None,
    ]


def test_a_robot_that_waits_in_init_says_why_once_for_each_cause_unless_a_miss_has_said_it() -> None:
    story = Story()
    waiting = QUIET._replace(state="INIT", cause="robot or perception not ready", detail="the robot is not ready")
    told = [story.line(waiting._replace(t=t)) for t in (0.2, 4.9, 5.2, 9.0)]
    assert told == [None, None, "still in INIT, robot or perception not ready: the robot is not ready", None]
    late = waiting._replace(cause="control loop overran", detail="")
    told = [story.line(late._replace(t=t)) for t in (9.2, 14.2, 14.4)]
    assert told == [None, "still in INIT, control loop overran", None]
    story = Story()
    told = [story.line(AWAY._replace(state="INIT", t=t)) for t in (0.2, 9.0)]
    assert told == ["INIT, no server at host:1", None]
    blind = QUIET._replace(state="INIT", cause="camera stale", detail="")
    told = [story.line(blind._replace(t=t)) for t in (9.2, 13.0, 18.0, 22.0)]
    assert told == [None, None, "still in INIT, camera stale", None], "no frame, no call, no answer"


def test_causes_that_take_turns_in_init_are_each_told_once() -> None:
    """An absolute arm without a position: its targets get too old, and new ones come."""
    story = Story()
    causes = ("the robot reports no position", "action too old")
    records = [QUIET._replace(state="INIT", cause=causes[tick % 2], detail="", t=0.2 * tick) for tick in range(100)]
    told = [line for record in records if (line := story.line(record))]
    assert sorted(told) == [f"still in INIT, {cause}" for cause in sorted(causes)]


def test_a_miss_in_a_record_of_a_fault_is_told_in_its_own_words() -> None:
    story = Story()
    fault = "robot arm: read_state raised OSError: no answer"
    broken = QUIET._replace(state="HOLD", detail=fault, fault=fault)
    told = [story.line(broken), story.line(broken._replace(miss="UNREACHABLE")), story.line(broken)]
    assert told == [f"HOLD, {fault}", "HOLD, unreachable", None]


def test_what_was_told_is_printed_by_the_time_it_is_closed() -> None:
    stream = io.StringIO()
    notices = Notices(stream)
    notices.add(LATE)
    notices.add(QUIET)
    notices.close()
    assert stream.getvalue() == "splitvla-edge: HOLD, frame 7: no answer in 150 ms\n"


def test_a_terminal_that_hangs_holds_up_no_tick() -> None:
    release = threading.Event()

    class Hanging(io.StringIO):
        def write(self, text: str) -> int:
            release.wait(10.0)
            return super().write(text)

    notices = Notices(Hanging())
    for _ in range(500):
        notices.add(LATE)
        notices.add(ANSWER)
    notices.close(timeout_s=0.1)
    release.set()


def test_a_call_of_the_robot_that_does_not_return_is_told_once_by_another_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("splitvla_shared.operator_lines._LOOK_S", 0.001)
    looks, enough, stream = iter(range(5)), threading.Event(), io.StringIO()

    def stuck_since() -> float | None:
        look = next(looks, None)
        if look is None:
            enough.set()
        return None if look in (0, None) else 7.0

    notices = Notices(stream, stuck_since)
    assert enough.wait(10.0)
    notices.close()
    assert stream.getvalue().startswith(
        "splitvla-edge: a call of the robot has not returned for 2 s; its own controller"
    )
    assert stream.getvalue().count("\n") == 1
