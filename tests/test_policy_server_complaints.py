"""What the operator of a policy server reads: seldom enough to be read, in one line each."""

from __future__ import annotations

from splitvla_edge.policy_server.complaints import Story
from splitvla_shared.errors import ObservationError, Overloaded, Unreachable


def test_a_kind_of_error_is_told_once_and_then_every_half_minute_with_its_count() -> None:
    story = Story()
    lines = [story.failed(now / 5, "POST /act", Unreachable(f"call {now} failed")) for now in range(5 * 31)]
    told = [line for line in lines if line]
    assert len(told) == 2
    assert told[0].startswith("no action for POST /act: call 0 failed; start `splitvla-cloud serve` there")
    assert told[1].endswith("(and 149 times since the last such line)")


def test_that_answers_come_again_is_told_once_and_only_after_an_error_of_the_link() -> None:
    story = Story()
    assert story.answered() is None
    story.failed(0.0, "POST /act", ObservationError("`image` is missing"))
    assert story.answered() is None
    story.failed(0.0, "POST /act", Unreachable("gone"))
    assert story.answered() == "answers come again"
    assert story.answered() is None
    assert story.failed(1.0, "POST /act", Unreachable("gone again")) is not None
    assert story.failed(1.0, "POST /act", ObservationError("`image` is missing")) is None


def test_what_a_client_wrote_is_one_printable_line() -> None:
    line = Story().failed(0.0, "POST /act", ObservationError("key 'a\n\x1b[31mb" + "x" * 999))
    assert line is not None
    assert line.isprintable()
    assert len(line) < 400


def test_what_was_refused_at_the_port_says_nothing_of_the_link() -> None:
    """A client that keeps being refused beside one that gets actions would else fill the log with both, in turn."""
    story = Story()
    assert story.refused(0.0, "a websocket", Overloaded("16 websockets are open already")) is not None
    for now in range(1, 30):
        assert story.answered() is None
        assert story.refused(now, "a websocket", Overloaded("16 websockets are open already")) is None
    assert story.failed(30.0, "POST /act", Overloaded("the server is busy")) is not None
    assert story.answered() == "answers come again"
    again = story.refused(31.0, "a websocket", Overloaded("16 websockets are open already"))
    assert again is not None
    assert again.endswith("(and 29 times since the last such line)")
