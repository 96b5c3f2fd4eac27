"""Perception: the newest frame once, one call at a time, and every end of a call told to the control process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from splitvla_edge.daemon.channel import Contract, Exhausted, FrameSeen, Message
from splitvla_edge.fallback import Asked, Chunk, Hint, LocalChunk, Miss, Outcome, Ready
from splitvla_edge.outcomes import OUTCOMES
from splitvla_shared.errors import (
    ConfigError,
    DeadlineMissed,
    EarlyStop,
    LinkError,
    ObservationError,
    Overloaded,
    RequestRejected,
    RobotError,
    ServerFault,
    SpecMismatch,
    SplitVLAError,
    Superseded,
    Unreachable,
)
from splitvla_shared.nouns import ActionChunk, Observation, StageTimes
from splitvla_shared.rungs import Rung
from tests.perception_rig import HINT, HINTS, READY, Rig


def test_a_frame_becomes_a_call_that_is_announced_and_answered() -> None:
    with Rig().agreed() as rig:
        rig.show(3)
        asked, chunk = rig.step()
        assert isinstance(asked, Asked)
        assert (asked.sequence, asked.epoch, asked.captured_at) == (11, 4, 19.95)
        assert asked.deadline_at == pytest.approx(20.25)
        assert chunk == Chunk(11, 4, 19.95, 20.0, ((0.1, 1.0),), 1, StageTimes(total_ms=5.0), 64, 0, HINTS)
        observation, deadline_s = rig.policy.seen[0]
        assert (observation.step, observation.instruction) == (3, "pick up the can")
        assert deadline_s == pytest.approx(0.25), "what is left of the frame's maximum age"


def test_an_action_is_on_its_way_before_anybody_is_told_of_the_answer() -> None:
    with Rig().agreed() as rig:
        rig.show(3)
        on_its_way: list[object] = []
        rig.policy.when_told = lambda: on_its_way.extend(rig.control.receive())
        rig.perception.step()
        assert [type(message) for message in on_its_way] == [Asked, Chunk]


def test_a_frame_is_used_once() -> None:
    with Rig().agreed() as rig:
        rig.show(3)
        rig.step()
        assert rig.step() == []
        rig.show(4)
        assert len(rig.step()) == 2


def test_the_local_policy_acts_on_every_frame_as_long_as_control_wants_it() -> None:
    with Rig().agreed() as rig:
        sent = []
        for index, wanted in enumerate((False, True, True)):
            rig.control.send(HINT._replace(local=wanted))
            rig.perception.listen()
            rig.show(index)
            for _ in range(2):
                rig.perception.act_locally()
            sent.append([message for message in rig.control.receive() if isinstance(message, LocalChunk)])
        assert sent == [
            [],
            [LocalChunk(2, 19.95, ((0.2, 0.0),), 0.9, 30)],
            [LocalChunk(3, 19.95, ((0.2, 0.0),), 0.9, 30)],
        ]


def test_where_only_the_local_policy_is_to_act_no_server_is_asked() -> None:
    with Rig(server_needed=False) as rig:
        rig.policy.handshakes = [Unreachable("nobody at home")]
        rig.control.send(HINT._replace(enabled=False, local=True))
        rig.perception.listen()
        assert rig.step() == [READY]
        rig.show(0)
        assert rig.step() == []
        assert rig.policy.seen == []


def test_control_chooses_the_payload_rung_of_every_call() -> None:
    with Rig().agreed() as rig:
        for index, wanted in enumerate((1, 0, 9)):
            rig.control.send(HINT._replace(rung=wanted))
            rig.perception.listen()
            rig.show(index)
            asked, chunk = rig.step()[-2:]
            assert isinstance(asked, Asked)
            assert isinstance(chunk, Chunk)
            assert asked.rung == chunk.rung == min(wanted, 2), "a rung that is not there is the smallest"
            assert rig.policy.sent[-1] is rig.policy.rungs[chunk.rung]


def test_calls_begin_no_closer_together_than_control_allows() -> None:
    with Rig().agreed() as rig:
        rig.control.send(HINT._replace(gap_s=0.125))
        rig.perception.listen()
        rig.show(0)
        rig.step()
        rig.show(1)
        rig.now += 0.12
        assert rig.step() == []
        rig.show(2, age=0.0)
        rig.now += 0.01
        rig.step()
        assert [observation.step for observation, _ in rig.policy.seen] == [0, 2], "and then with the newest frame"


def test_sequences_rise_above_the_floor_that_control_gives() -> None:
    with Rig().agreed() as rig:
        sequences = []
        for index in range(3):
            rig.show(index)
            sequences += [message.sequence for message in rig.step() if isinstance(message, Chunk)]
        assert sequences == [11, 12, 13]


def test_no_call_begins_before_the_first_hint_or_while_control_wants_none() -> None:
    with Rig() as rig:
        rig.show(0)
        assert rig.step() == [READY]
        assert rig.step() == []
        rig.control.send(Hint(4, 10, 0.3, 0.1, 0.5, enabled=False))
        rig.perception.listen()
        rig.show(1)
        rig.control.receive()
        assert rig.step() == []
        assert rig.policy.seen == []


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (DeadlineMissed("x"), Outcome.MISSED),
        (Unreachable("x"), Outcome.UNREACHABLE),
        (Overloaded("x"), Outcome.OVERLOADED),
        (Superseded("x"), Outcome.SUPERSEDED),
        (RequestRejected("x"), Outcome.REJECTED),
        (ObservationError("x"), Outcome.REJECTED),
        (EarlyStop("x"), Outcome.EARLY_STOP),
        (ServerFault("x"), Outcome.FAULT),
        (SpecMismatch("x"), Outcome.FAULT),
    ],
)
def test_a_call_that_fails_is_told_as_what_it_was(error: SplitVLAError, outcome: Outcome) -> None:
    with Rig().agreed() as rig:
        rig.policy.acts = [error]
        rig.show(0)
        assert rig.step()[1:] == [Miss(11, outcome, "x")]
        assert rig.paused == ([0.1] if outcome is Outcome.UNREACHABLE else []), "a refusal takes no time of its own"


def test_a_server_that_asks_to_be_left_alone_is_not_asked_before() -> None:
    with Rig().agreed() as rig:
        shed = Overloaded("queue full")
        shed.retry_after_s = 0.4
        rig.policy.acts = [shed]
        rig.show(0)
        assert [type(message) for message in rig.step()] == [Asked, Miss]
        rig.now += 0.39
        rig.show(1)
        assert rig.step() == []
        rig.now += 0.02
        assert [type(message) for message in rig.step()] == [Asked, Chunk]


def test_every_outcome_but_met_has_an_error() -> None:
    assert {outcome for _, outcome in OUTCOMES} == set(Outcome) - {Outcome.MET}


def test_while_the_server_is_away_perception_asks_again_soon_and_now_and_then_patiently() -> None:
    with Rig() as rig:
        rig.policy.handshakes = [Unreachable("no server")] * 5
        messages = [message for _ in range(5) for message in rig.step()]
        assert messages == [Miss(0, Outcome.UNREACHABLE, "no server")] * 5
        assert rig.paused == [0.1] * 5
        assert rig.policy.patience == [0.3, 0.3, 0.3, 1.0, 0.3]
        assert rig.step() == [READY]


@pytest.mark.parametrize("error", [SpecMismatch("embed_dim"), ConfigError("scheme")])
def test_a_mismatch_at_the_first_handshake_ends_the_process(error: SplitVLAError) -> None:
    with ThreadPoolExecutor(1) as process, Rig() as rig:
        rig.policy.handshakes = [error]
        running = process.submit(rig.perception.run)
        with pytest.raises(type(error)):
            running.result(20.0)


def test_another_model_on_the_server_is_a_contract_violation_until_it_is_the_old_one_again() -> None:
    with Rig().agreed() as rig:
        rig.policy.acts = [SpecMismatch("fingerprint")]
        rig.policy.handshakes = [SpecMismatch("embed_dim: 4096 here, 896 there"), None]
        rig.show(0)
        assert [type(message) for message in rig.step()] == [Asked, Miss]
        assert rig.step() == [Contract("embed_dim: 4096 here, 896 there")]
        assert rig.paused == [0.25]
        assert rig.step() == [READY]


def test_a_server_that_was_restarted_with_the_same_model_is_greeted_again() -> None:
    with Rig().agreed() as rig:
        rig.policy.acts = [SpecMismatch("fingerprint")]
        rig.show(0)
        rig.step()
        assert rig.step() == [READY]


def test_a_camera_that_fails_is_told_and_tried_again() -> None:
    with Rig().agreed() as rig:
        rig.camera.error = RobotError("camera 0 gives no frames")
        assert rig.step() == [Miss(0, Outcome.FAULT, "camera 0 gives no frames")]
        rig.camera.error = None
        rig.show(0)
        assert len(rig.step()) == 2


def test_the_end_of_the_frames_is_told_once_after_the_last_call() -> None:
    with Rig().agreed() as rig:
        rig.show(36)
        rig.camera.ended = True
        assert [type(message) for message in rig.step()] == [Asked, Chunk]
        assert rig.step() == [Exhausted()]
        assert rig.step() == []


def test_the_end_of_the_frames_is_told_in_a_safe_stop_too() -> None:
    with Rig().agreed() as rig:
        rig.control.send(Hint(4, 10, 0.3, 0.1, 0.5, enabled=False))
        rig.perception.listen()
        rig.show(36)
        rig.camera.ended = True
        assert rig.step() + rig.step() == [Exhausted()]


def test_what_is_said_once_is_said_when_a_control_that_stalled_reads_again() -> None:
    """Its socket is full then; without Ready the robot would hold until the run is started anew."""
    with Rig() as rig:
        heard: list[Message] = []
        rig.perception._pause = lambda seconds: heard.extend(rig.control.receive())
        _fill(rig)
        rig.perception.step()
        assert [message for message in heard + rig.control.receive() if isinstance(message, Ready)] == [READY]
        rig.camera.ended = True
        _fill(rig)
        heard.clear()
        rig.perception.step()
        rig.perception.step()
        rig.perception.step()
        assert [type(message) for message in heard + rig.control.receive()].count(Exhausted) == 1


def _fill(rig: Rig) -> None:
    while rig.peer.send(FrameSeen(20.0, 1)):
        pass


def test_frames_are_reported_while_a_call_is_running() -> None:
    with Rig().agreed() as rig:
        calling, answer = threading.Event(), threading.Event()
        act: Callable[..., ActionChunk] = rig.policy.act

        def slow_act(observation: Observation, *, deadline_s: float, rung: Rung) -> ActionChunk:
            calling.set()
            assert answer.wait(5.0)
            return act(observation, deadline_s=deadline_s, rung=rung)

        rig.policy.act = slow_act  # type: ignore[method-assign]
        rig.show(0)
        runner = threading.Thread(target=rig.perception.run)
        runner.start()
        assert calling.wait(5.0)
        rig.show(1)
        seen: list[Message] = []
        while FrameSeen(19.95, 1) not in seen:
            assert rig.control.wait(5.0)
            seen += rig.control.receive()
        assert not any(isinstance(message, Chunk) for message in seen)
        answer.set()
        rig.control.close()
        runner.join(5.0)
        assert not runner.is_alive(), "perception ends when the control process is gone"


def test_link_errors_are_all_outcomes() -> None:
    for kind in LinkError.__subclasses__():
        assert any(issubclass(kind, listed) for listed, _ in OUTCOMES)


def test_what_cannot_be_said_any_more_does_not_keep_perception_from_its_end() -> None:
    """Control stalls with a full socket, and perception's listener has ended meanwhile."""
    with Rig() as rig:
        _fill(rig)
        rig.perception._pause = lambda seconds: pytest.fail("it would wait for ever")
        rig.perception.closed.set()
        rig.perception.step()
