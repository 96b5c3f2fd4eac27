"""From a client's bytes to its action: what both protocols have in common, on the event loop of the port."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from splitvla_edge.policy_server.complaints import Complaints
from splitvla_edge.policy_server.request import ActionRequest, check_key
from splitvla_edge.policy_server.worker import Job, PolicyWorker, stopping, waited
from splitvla_shared.errors import DeadlineMissed, SplitVLAError
from splitvla_shared.nouns import ActionChunk

# The policy's own word on why it is late comes with its deadline, and says more than ours.
_GRACE_S = 0.05
E = TypeVar("E", bound=SplitVLAError)


class ClientGone(Exception):  # noqa: N818 - what happened, in one word
    """Nobody waits for this answer any more."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request came, until when it is to be answered, on the desk's clock, and what its client is called."""

    what: str
    arrived_at: float
    deadline_s: float

    @property
    def ends_at(self) -> float:
        return self.arrived_at + self.deadline_s

    def late(self) -> DeadlineMissed:
        return DeadlineMissed(f"no action within the deadline of {self.deadline_s * 1e3:.0f} ms")

    def waited(self, now: float) -> DeadlineMissed:
        return waited(now - self.arrived_at, self.deadline_s)


class Desk:
    """Owned by the event loop. Mutable state: requests under way, counts, and whether it is closing.

    answered, failed: requests so far. served_key: the statistics that actions are scaled with.
    """

    def __init__(
        self,
        worker: PolicyWorker,
        complaints: Complaints,
        *,
        served_key: str,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.answered = self.failed = 0
        self._worker, self._complaints, self._key = worker, complaints, served_key
        self._deadline_s, self._clock = deadline_s, clock
        self._closing = False
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def arrive(self, what: str) -> Arrival:
        return Arrival(what, self._clock(), self._deadline_s)

    def elapsed_ms(self, arrival: Arrival) -> float:
        return (self._clock() - arrival.arrived_at) * 1e3

    async def act(
        self, arrival: Arrival, read: Callable[[], Awaitable[ActionRequest]], gone: Callable[[], Awaitable[object]]
    ) -> ActionChunk:
        """The action, in time. read: gives the request. gone: returns when the client has hung up.

        Raises the SplitVLAError that the client is to be told, which the operator has been told then; ClientGone.
        """
        self._under_way += 1
        self._idle.clear()
        try:
            chunk = await self._acted(arrival, read, gone)
        except SplitVLAError as error:
            self.failed += 1
            self._complaints.failed(arrival.what, error)
            raise
        else:
            self.answered += 1
            self._complaints.answered()
            return chunk
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    def refuse(self, what: str, error: E) -> E:
        """Count and tell a request that never became one; returns the error."""
        self.failed += 1
        self._complaints.refused(what, error)
        return error

    async def close(self) -> None:
        """Take nothing new, and wait for what is under way: each has its deadline."""
        self._closing = True
        await self._idle.wait()

    async def _acted(
        self, arrival: Arrival, read: Callable[[], Awaitable[ActionRequest]], gone: Callable[[], Awaitable[object]]
    ) -> ActionChunk:
        if self._closing:
            raise stopping()
        if not self._left_s(arrival):
            raise arrival.waited(self._clock())
        try:
            request = await asyncio.wait_for(read(), self._left_s(arrival))
        except asyncio.TimeoutError as error:
            raise DeadlineMissed(f"the request took longer to come than {arrival.deadline_s * 1e3:.0f} ms") from error
        check_key(request, self._key)
        job = Job(request, arrival.arrived_at, arrival.deadline_s)
        self._worker.submit(job)
        answer, hangs_up = asyncio.wrap_future(job.answer), asyncio.ensure_future(gone())
        try:
            await asyncio.wait(
                (answer, hangs_up),
                timeout=self._left_s(arrival) + _GRACE_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if answer.done():
                chunk = answer.result()
                if self._clock() > arrival.ends_at:
                    raise arrival.late()
                return chunk
            if hangs_up.done():
                raise ClientGone
            raise arrival.late()
        finally:
            answer.cancel()
            hangs_up.cancel()
            await asyncio.gather(hangs_up, return_exceptions=True)

    def _left_s(self, arrival: Arrival) -> float:
        return max(0.0, arrival.ends_at - self._clock())
