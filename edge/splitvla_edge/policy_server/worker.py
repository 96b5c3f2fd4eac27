"""The one thread that owns the policy: requests of all clients one after another, and the way back to a lost server."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from splitvla_edge.handshakes import Handshakes
from splitvla_edge.policy_server.complaints import Complaints
from splitvla_edge.policy_server.ladder import PayloadLadder
from splitvla_edge.policy_server.request import ActionRequest
from splitvla_shared.errors import (
    DeadlineMissed,
    LinkError,
    ObservationError,
    Overloaded,
    ServerFault,
    SplitVLAError,
    Unreachable,
)
from splitvla_shared.nouns import ActionChunk, Observation
from splitvla_shared.rungs import Rung

# One robot asks for one action at a time; this many are several programs that don't know of each other.
_WAITING_LIMIT = 8
# What a policy may raise whose link is closed under its hands.
_TORN = (RuntimeError, AttributeError)


class Policy(Protocol):
    """What the worker asks of EdgePolicy."""

    def handshake(self, timeout_s: float) -> object: ...

    @property
    def rungs(self) -> Sequence[Rung]: ...

    def act(self, observation: Observation, *, deadline_s: float, rung: Rung) -> ActionChunk: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A request that came at `arrived_at` and is to be answered within `deadline_s` of that; cancel `answer` to end it.

    `answer` holds the chunk or the SplitVLAError.
    """

    request: ActionRequest
    arrived_at: float
    deadline_s: float
    answer: Future[ActionChunk] = field(default_factory=Future)


class PolicyWorker:
    """Mutable state: the queue, whether a model is agreed, the payload ladder, and until when the server is left alone.

    `ended` resolves when the thread is gone, or holds what ended it: SpecMismatch or ConfigError of the first
    handshake, which no retry mends, or a slip of ours.
    """

    def __init__(
        self,
        policy: Policy,
        complaints: Complaints,
        *,
        accept_clipped: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ended: Future[None] = Future()
        self._policy, self._complaints, self._accept_clipped, self._clock = policy, complaints, accept_clipped, clock
        self._queue: queue.Queue[Job | None] = queue.Queue()  # None: nothing to do but to look at `_closing`
        self._closing = threading.Event()
        self._hurried = False
        self._handshakes, self._ladder = Handshakes(), PayloadLadder(policy.rungs)
        self._not_before = -math.inf
        self._step = 0
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        """From any thread. Raises Overloaded when too many wait, Unreachable after `close`."""
        if self._closing.is_set():
            raise stopping()
        if self._queue.qsize() >= _WAITING_LIMIT:
            raise Overloaded(f"{_WAITING_LIMIT} requests wait for an action already; ask from one program at a time")
        self._queue.put(job)

    def close(self) -> None:
        """End the thread after the request it is at; those that wait get Unreachable."""
        self._closing.set()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def hurry(self) -> None:
        """Let no call finish: the policy is closed, and what is under way ends with Unreachable. `close` comes next."""
        self._hurried = True
        self._closing.set()
        self._queue.put(None)
        self._policy.close()

    def step(self) -> None:
        """Agree with the server, answer one request, or wait for either.

        Raises SpecMismatch or ConfigError from the first handshake.
        """
        agreed = self._handshakes.agreed
        job = self._take(None if agreed else self._handshakes.pause_s)
        if self._closing.is_set():
            _fail(job, stopping())
        elif agreed or self._agree(job):
            self._answer(job)

    def _run(self) -> None:
        lost: SplitVLAError | None = ServerFault("the policy's thread ended; its traceback is on standard error")
        try:
            while not self._closing.is_set():
                self.step()
            lost = None
        except SplitVLAError as error:
            lost = error
        except _TORN:
            if not self._hurried:
                raise
            lost = None
        finally:
            self._closing.set()
            if lost is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(lost)
            for job in self._waiting():
                _fail(job, stopping())

    def _take(self, timeout_s: float | None) -> Job | None:
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _waiting(self) -> list[Job]:
        """All that wait, taken."""
        jobs: list[Job] = []
        while True:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return jobs
            if job is not None:
                jobs.append(job)

    def _agree(self, job: Job | None) -> bool:
        """Ask the server once for its model; when there is none, that is the answer to `job` and to all that wait."""
        try:
            reason = self._handshakes.seek(self._policy.handshake)
        except SplitVLAError as error:
            _fail(job, error)
            raise
        if reason is None:
            self._complaints.answered()
            return True
        self._complaints.failed("anybody", reason)
        for waiting in (job, *self._waiting()):
            _fail(waiting, reason)
        return False

    def _answer(self, job: Job | None) -> None:
        if job is None or not job.answer.set_running_or_notify_cancel():  # its client has gone
            return
        try:
            chunk = self._act(job)
            job.answer.set_result(chunk)
        except SplitVLAError as error:
            job.answer.set_exception(error)
        finally:
            if not job.answer.done():
                slip = ServerFault("the policy server failed; its log says where")
                job.answer.set_exception(stopping() if self._hurried else slip)

    def _act(self, job: Job) -> ActionChunk:
        now = self._clock()
        left_s = job.arrived_at + job.deadline_s - now
        if left_s <= 0:
            raise waited(now - job.arrived_at, job.deadline_s)
        if now < self._not_before:
            raise Overloaded(f"the server asked to be left alone for {(self._not_before - now) * 1e3:.0f} ms more")
        self._step += 1
        rung = self._ladder.choose()
        request = job.request
        observation = Observation(self._step, request.images, request.instruction, job.arrived_at)
        try:
            chunk = self._policy.act(observation, deadline_s=left_s, rung=self._policy.rungs[rung])
        except SplitVLAError as error:
            self._handshakes.heed(error)
            self._ladder.failed(self._clock(), error, rung, job.deadline_s)
            if isinstance(error, LinkError):
                self._not_before = self._clock() + error.retry_after_s
            raise
        except MemoryError as error:  # the request is too large, not this process too ill
            shapes = ", ".join(str(image.shape) for image in request.images)
            raise ObservationError(f"pictures of shape {shapes} take more memory than there is; scale down") from error
        self._ladder.met(self._clock(), job.arrived_at, chunk, rung, job.deadline_s)
        self._check(chunk)
        return chunk

    def _check(self, chunk: ActionChunk) -> None:
        """Raises ServerFault when some of the answer is no action."""
        if chunk.clipped and not self._accept_clipped:
            tokens = ", ".join(f"{chunk.tokens[index]} in place {index}" for index in chunk.clipped)
            raise ServerFault(
                f"the model answered tokens that are no actions ({tokens}); --accept-clipped serves them clipped"
            )


def _fail(job: Job | None, error: SplitVLAError) -> None:
    if job is not None and job.answer.set_running_or_notify_cancel():
        job.answer.set_exception(error)


def stopping() -> Unreachable:
    return Unreachable("the policy server is stopping; ask again when it is back")


def waited(waited_s: float, deadline_s: float) -> DeadlineMissed:
    return DeadlineMissed(
        f"not computed: it waited {waited_s * 1e3:.0f} ms for other requests, "
        f"with a deadline of {deadline_s * 1e3:.0f} ms"
    )
