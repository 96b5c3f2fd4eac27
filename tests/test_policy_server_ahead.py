"""A websocket whose client sends before it has its answers: each message counts its time from its own arrival."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from splitvla_edge.policy_server.app import OpenpiSettings, build_app
from splitvla_edge.policy_server.desk import Arrival, Desk
from splitvla_edge.policy_server.numpy_msgpack import pack, unpack
from splitvla_edge.policy_server.request import MAX_MESSAGE_BYTES
from splitvla_edge.policy_server.turns import MAX_TURNS, MAX_UNANSWERED, Turns
from splitvla_shared.errors import ServerFault
from tests.policy_worker_rig import Rig

OBSERVATION = pack({"image": np.zeros((2, 2, 3), np.uint8), "prompt": "go"})


class Conversation(Rig):
    """One client's websocket, played by the test, in front of a worker whose steps the test takes."""

    def __init__(self) -> None:
        super().__init__()
        self.agreed()
        self.desk = Desk(self.worker, self.complaints, served_key="arm", deadline_s=1.0, clock=self.clock)
        self.coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self._serving: asyncio.Future[None] | None = None

    async def begin(self) -> None:
        app = build_app(self.desk, OpenpiSettings((), {"model": "m"}))
        scope = {"type": "websocket", "path": "/", "headers": [], "subprotocols": []}
        self._serving = asyncio.ensure_future(app(scope, self.coming.get, self._send))
        self.coming.put_nowait({"type": "websocket.connect"})
        await self.until(lambda: len(self.sent) == 2)  # accepted, metadata
        del self.sent[:]

    def say(self, *, text: str | None = None) -> None:
        kind = {"bytes": OBSERVATION} if text is None else {"text": text}
        self.coming.put_nowait({"type": "websocket.receive", **kind})

    async def say_and_be_heard(self, *, text: str | None = None) -> None:
        self.say(text=text)
        await self.until(self.coming.empty)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0)

    async def answer(self, count: int = 1) -> None:
        """The policy's thread takes up the next requests."""
        for _ in range(count):
            await self.until(lambda: bool(self.worker._queue.qsize()))
            self.worker.step()

    async def replies(self, count: int) -> list[str]:
        """What was sent, in words: "actions", or the error's text."""
        await self.until(lambda: len(self.sent) >= count)
        return ["actions" if reply.get("bytes") else reply["text"] for reply in self.sent]

    async def end(self) -> None:
        self.coming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        assert self._serving is not None
        await self._serving

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


def _played(scenario: Callable[[Conversation], Awaitable[None]]) -> Conversation:
    async def play() -> Conversation:
        conversation = Conversation()
        await conversation.begin()
        await scenario(conversation)
        return conversation

    return asyncio.run(play())


def test_a_client_that_waits_for_each_answer_gets_each() -> None:
    async def scenario(client: Conversation) -> None:
        for count in range(1, 4):
            client.say()
            await client.answer()
            assert await client.replies(count) == ["actions"] * count
        await client.end()
        timings = [unpack(reply["bytes"])["server_timing"] for reply in client.sent]
        assert [set(timing) for timing in timings] == [{"infer_ms"}] + [{"infer_ms", "prev_total_ms"}] * 2

    _played(scenario)


def test_what_waited_behind_others_counts_its_time_from_its_own_arrival() -> None:
    """An answer to the third would be 1.8 s old, with a deadline of 1 s, however quickly it is computed then."""

    async def scenario(client: Conversation) -> None:
        client.policy.cost_s = 0.9
        for _ in range(3):
            await client.say_and_be_heard()
        await client.answer(2)
        client.policy.cost_s = 0.0
        first, second, third = await client.replies(3)
        assert first == "actions"
        assert "no action within the deadline of 1000 ms" in second
        assert "not computed: it waited 1800 ms" in third
        client.say()
        await client.answer()
        assert (await client.replies(4))[3] == "actions"
        await client.end()

    assert len(_played(scenario).policy.asked) == 3


def test_of_too_many_that_were_sent_ahead_the_newest_are_computed_and_all_are_answered_in_order() -> None:
    async def scenario(client: Conversation) -> None:
        await client.say_and_be_heard()
        await client.until(lambda: bool(client.worker._queue.qsize()))  # it is under way
        for _ in range(MAX_UNANSWERED + 1):
            await client.say_and_be_heard()
        await client.answer(MAX_UNANSWERED)
        replies = await client.replies(MAX_UNANSWERED + 2)
        assert replies[0] == "actions"
        assert all("newer messages" in reply and "wait for each answer" in reply for reply in replies[1:3])
        assert replies[3:] == ["actions"] * (MAX_UNANSWERED - 1)
        await client.end()

    conversation = _played(scenario)
    assert (conversation.desk.answered, conversation.desk.failed) == (MAX_UNANSWERED, 2)
    lines = conversation.told.getvalue().splitlines()
    assert len(lines) == 1, "once, and no tidings that answers come again"
    assert lines[0].startswith("splitvla-edge: no action for websocket: not computed: ")


def test_nothing_is_computed_for_a_client_that_has_gone_with_messages_in_their_turn() -> None:
    async def scenario(client: Conversation) -> None:
        for _ in range(3):
            await client.say_and_be_heard()
        await client.until(lambda: bool(client.worker._queue.qsize()))
        await client.end()
        client.worker.step()
        assert not client.worker._queue.qsize()

    conversation = _played(scenario)
    assert not conversation.policy.asked
    assert not conversation.sent


def test_a_client_that_never_waits_is_hung_up_on() -> None:
    async def scenario(client: Conversation) -> None:
        await client.say_and_be_heard()
        await client.until(lambda: bool(client.worker._queue.qsize()))
        for _ in range(MAX_TURNS + 1):
            client.say(text="x")
        await client.until(lambda: client.sent[-1:] != [] and client.sent[-1]["type"] == "websocket.close")
        assert client.sent[-1]["code"] == 1008
        client.worker.step()
        assert not client.policy.asked

    assert "answers; wait for each" in _played(scenario).told.getvalue()


def test_an_error_of_the_policy_leaves_the_next_in_its_turn() -> None:
    async def scenario(client: Conversation) -> None:
        client.policy.acts = [ServerFault("as told")]
        await client.say_and_be_heard()
        await client.say_and_be_heard(text="text")
        await client.say_and_be_heard()
        await client.answer(2)
        replies = await client.replies(3)
        assert ["as told" in replies[0], "a text frame" in replies[1], replies[2]] == [True, True, "actions"]
        await client.end()

    _played(scenario)


def test_large_messages_that_wait_are_held_up_to_the_size_of_one() -> None:
    async def turns_of(*sizes: int) -> list[int | None]:
        turns = Turns()
        for size in sizes:
            turns.add(Arrival("websocket", 0.0, 1.0), {"type": "websocket.receive", "bytes": bytes(size)})
        taken = [await turns.next() for _ in sizes]
        return [None if turn.message is None else len(turn.message["bytes"]) for turn in taken]

    half = MAX_MESSAGE_BYTES // 2
    assert asyncio.run(turns_of(half, half)) == [half, half]
    assert asyncio.run(turns_of(half + 1, half)) == [None, half]
    assert asyncio.run(turns_of(1, MAX_MESSAGE_BYTES)) == [None, MAX_MESSAGE_BYTES]
