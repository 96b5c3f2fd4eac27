"""What one websocket has sent and not been answered: every message in its turn, with the time at which it came."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from starlette.types import Message

from splitvla_edge.policy_server.desk import Arrival, ClientGone
from splitvla_edge.policy_server.request import MAX_MESSAGE_BYTES

# Messages of one client that are held, the one under way among them: with more, their pictures would only grow old.
MAX_UNANSWERED = 4
# Turns of one client, those included whose message has given way: who is so far ahead reads no answers.
MAX_TURNS = 1024


@dataclass(slots=True, eq=False)
class Turn:
    """message: None when newer ones took its place; its turn is then answered by an error."""

    arrival: Arrival
    message: Message | None


class Turns:
    """Owned by the event loop. Mutable state: the turns that wait, whether one is under way, and `gone`.

    A client that waits for each answer has one turn. Of one that sends ahead the newest messages are held, and all are
    answered in their order, because it tells the answers apart by nothing else.
    gone: the client has hung up, or is so far ahead that it is to be.
    """

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.too_many = False
        self._turns: deque[Turn] = deque()
        self._held: deque[Turn] = deque()  # those of _turns that have their message
        self._under_way = 0
        self._news = asyncio.Event()

    def add(self, arrival: Arrival, message: Message) -> None:
        turn = Turn(arrival, message)
        self._turns.append(turn)
        self._held.append(turn)
        while len(self._held) + self._under_way > MAX_UNANSWERED or self._held_bytes() > MAX_MESSAGE_BYTES:
            self._held.popleft().message = None
        if len(self._turns) > MAX_TURNS:
            self.too_many = True
            self.end()
        self._news.set()

    def end(self) -> None:
        self.gone.set()
        self._news.set()

    async def next(self) -> Turn:
        """The next in order, once the one before is answered. Raises ClientGone: nobody reads the others."""
        self._under_way = 0
        while not self._turns and not self.gone.is_set():
            self._news.clear()
            await self._news.wait()
        if self.gone.is_set():
            raise ClientGone
        turn = self._turns.popleft()
        if turn.message is not None:
            self._held.popleft()
            self._under_way = 1
        return turn

    def _held_bytes(self) -> int:
        messages = (turn.message for turn in self._held if turn.message is not None)
        return sum(len(message.get("bytes") or message.get("text") or "") for message in messages)
