"""Several servers behind one link: drain, failure, load and probes, with fakes for the servers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from splitvla_edge.link import servers
from splitvla_edge.link.breaker import Breaker
from splitvla_edge.link.calls import Reply, ServerDescription
from splitvla_edge.link.grpc_link import check_addresses
from splitvla_shared.errors import ConfigError, DeadlineMissed, Overloaded, Unreachable
from splitvla_shared.nouns import Scheme
from tests.fake_server import SPEC
from tests.server_pool_rig import CALL, FakeServer, Rig

pytestmark = pytest.mark.usefixtures("patient_handshake")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    made.pool.describe(1.0)
    yield made
    made.pool.close()


def test_calls_go_to_the_first_server_as_long_as_it_is_well(rig: Rig) -> None:
    for _ in range(3):
        rig.infer()
    assert rig.counts() == (3, 0)


def test_a_server_that_drains_hands_over_without_losing_a_call(rig: Rig) -> None:
    rig.a.outcome = Reply(7, tokens=(1,), draining=True)
    assert isinstance(rig.infer(), Reply)
    assert isinstance(rig.infer(), Reply)
    assert (rig.counts(), rig.pool.address) == ((1, 1), "b:2")


def test_a_server_that_drains_alone_is_used_to_the_end(rig: Rig) -> None:
    rig.b.description = Unreachable("off")
    rig.pool.describe(1.0)
    rig.a.outcome = Reply(7, tokens=(1,), draining=True)
    for _ in range(3):
        assert isinstance(rig.infer(), Reply)
    assert rig.counts() == (3, 0)


def test_a_server_that_refuses_is_left_at_once_and_one_that_misses_after_the_second_time(rig: Rig) -> None:
    rig.a.outcome = Unreachable("refused")
    rig.infer()
    rig.infer()
    assert rig.counts() == (1, 1)
    rig.b.outcome = DeadlineMissed("late")
    rig.a.outcome = Reply(7, tokens=(1,))
    rig.infer()
    rig.infer()
    assert rig.counts() == (1, 3)


def test_a_server_that_shed_load_is_passed_over_for_a_second(rig: Rig) -> None:
    rig.a.outcome = Overloaded("queue full")
    rig.infer()
    rig.infer()
    assert rig.counts() == (1, 1)


def test_a_server_that_says_for_how_long_is_passed_over_for_so_long_and_the_other_one_is_asked_at_once(
    rig: Rig,
) -> None:
    shed = rig.a.outcome = Overloaded("queue full")
    shed.retry_after_s = 0.2
    rig.infer()
    assert shed.retry_after_s == 0.0, "nobody need wait: there is another server"
    rig.a.outcome = Reply(7, tokens=(1,))
    rig.now += 0.1
    rig.infer()
    rig.b.outcome = Unreachable("gone")
    rig.now += 0.2
    rig.infer()
    rig.infer()
    assert rig.counts() == (2, 2)


def test_a_server_with_another_model_is_never_used(rig: Rig) -> None:
    rig.b.description = ServerDescription(replace(SPEC, fingerprint="0" * 64), tuple(Scheme))
    rig.pool.describe(1.0)
    rig.a.outcome = Unreachable("refused")
    for _ in range(3):
        rig.infer()
    assert rig.counts() == (3, 0)


def test_a_server_that_failed_is_probed_once_and_never_with_a_frame(rig: Rig) -> None:
    rig.a.outcome = Unreachable("refused")
    rig.infer()
    assert rig.a.described.acquire(timeout=5.0), "of the handshake"
    rig.infer()
    assert not rig.a.described.acquire(blocking=False), "not before the pause is over"
    rig.now += 1.1
    rig.infer()
    assert rig.a.described.acquire(timeout=5.0)
    assert rig.counts() == (1, 2)


def test_a_server_whose_probe_failed_in_an_outage_takes_over_when_it_is_needed(rig: Rig) -> None:
    well, gone = (rig.a.outcome, rig.a.description), Unreachable("no network")

    def die(server: FakeServer) -> None:
        server.outcome = server.description = gone

    def come_back(server: FakeServer) -> None:
        server.outcome, server.description = well

    die(rig.a)
    die(rig.b)
    for wait_s in (0.0, 0.0, 1.1, 2.1):  # both refuse, and then no probe is answered
        rig.now += wait_s
        rig.infer()
        rig.settle()
    come_back(rig.b)
    assert isinstance(rig.infer(), Reply), "a frame of the robot is answered before the next probe is due"
    come_back(rig.a)
    rig.now += 8.1
    rig.infer()
    rig.settle()
    die(rig.b)
    rig.infer()
    assert isinstance(rig.infer(), Reply)
    come_back(rig.b)
    rig.now += 8.1
    rig.infer()
    rig.settle()
    die(rig.a)
    rig.infer()
    assert isinstance(rig.infer(), Reply)
    assert rig.pool.address == "b:2"


def test_the_handshake_describes_the_first_server_that_can_be_used(rig: Rig) -> None:
    rig.a.description = ServerDescription(SPEC, tuple(Scheme), draining=True)
    described = rig.pool.describe(1.0)
    assert not described.draining
    assert rig.pool.address == "b:2"


def test_a_server_that_describes_itself_and_does_not_serve_is_no_second_server(rig: Rig) -> None:
    """One that is loading its model, or whose pass hangs. (No word at all is a long path to one that is there.)"""
    well = rig.a.outcome
    rig.a.outcome = Unreachable("restarted")
    rig.infer()
    rig.a.says = "NOT_SERVING"
    rig.now += 8.1
    rig.infer()
    rig.settle()
    shed = rig.b.outcome = Overloaded("queue full")
    shed.retry_after_s = 0.2
    rig.infer()
    assert shed.retry_after_s == 0.2, "there is nobody else"
    rig.b.outcome = well
    rig.now += 0.3
    assert rig.counts() == (1, 2)
    rig.a.says, rig.a.outcome = DeadlineMissed("no word of its health"), well
    rig.now += 8.1
    rig.infer()
    rig.settle()
    rig.b.outcome = Unreachable("gone")
    rig.infer()
    assert isinstance(rig.infer(), Reply)
    assert rig.pool.address == "a:1"


def test_the_handshake_prefers_a_server_that_serves_to_one_that_is_loading(rig: Rig) -> None:
    rig.a.says = "NOT_SERVING"
    rig.pool.describe(1.0)
    assert rig.pool.address == "b:2"
    rig.b.description = Unreachable("off")
    rig.pool.describe(1.0)
    assert rig.pool.address == "a:1", "it will be ready soon, and is the only one"


def test_the_handshake_does_not_wait_for_a_server_that_says_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_OTHERS_S", 0.01)
    for silent, other in ((rig.a, rig.b), (rig.b, rig.a)):
        silent.may_describe.clear()
        rig.pool.describe(1.0)
        assert rig.pool.address == other.address
        silent.may_describe.set()


def test_the_handshake_fails_only_when_no_server_answers(rig: Rig) -> None:
    rig.a.description = rig.b.description = Unreachable("nobody at home")
    with pytest.raises(Unreachable, match="nobody at home"):
        rig.pool.describe(1.0)
    assert rig.pool.address == "a:1"


def test_the_handshake_believes_only_the_servers_that_answer_now(rig: Rig) -> None:
    rig.a.description = Unreachable("nobody at home")
    rig.b.description = other = ServerDescription(replace(SPEC, fingerprint="0" * 64), tuple(Scheme))
    assert rig.pool.describe(1.0) is other, "whose differences are to be named"


DIFFERENCE = replace(CALL, key_frame=lambda: replace(CALL, sequence=8), held_by="a:1")


def test_a_difference_goes_only_to_the_server_that_holds_its_reference(rig: Rig) -> None:
    rig.pool.infer(DIFFERENCE, 0.3)
    rig.a.outcome = Unreachable("refused")
    rig.infer()
    rig.pool.infer(DIFFERENCE, 0.3)
    assert [call.sequence for call in rig.a.calls] == [7, 7]
    assert [call.sequence for call in rig.b.calls] == [8]


def test_closing_the_pool_closes_every_link(rig: Rig) -> None:
    rig.pool.close()
    assert (rig.a.closed, rig.b.closed) == (True, True)


def test_a_pool_that_is_closed_says_so_as_a_single_link_does(rig: Rig) -> None:
    rig.pool.close()
    with pytest.raises(Unreachable, match=r"the links to a:1, b:2 are closed"):
        rig.pool.describe(1.0)


def test_a_breaker_sends_one_probe_at_a_time_and_waits_twice_as_long_after_a_failed_one() -> None:
    breaker = Breaker()
    breaker.failed(0.0)
    assert breaker.closed
    breaker.failed(0.0)
    assert not breaker.closed
    assert not breaker.take_probe(0.9)
    assert breaker.take_probe(1.0)
    assert not breaker.take_probe(1.0), "one is out"
    breaker.probed(1.0, well=False)
    assert not breaker.take_probe(2.9)
    assert breaker.take_probe(3.0)
    breaker.probed(3.0, well=True)
    assert breaker.closed


def test_addresses_are_checked_one_by_one() -> None:
    assert check_addresses("a:1, b:2") == ("a:1", "b:2")
    for text in ("a:1,", "a:1,a:1", "a:1,b"):
        with pytest.raises(ConfigError):
            check_addresses(text)
