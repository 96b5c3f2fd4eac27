"""The one thread that owns the GPU: it loads the backbone, takes frames from the queue and resolves their futures."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from splitvla_cloud.scheduler import BusyMeter, FrameQueue, Ticket
from splitvla_shared.errors import ServerFault, SplitVLAError, Unreachable
from splitvla_shared.nouns import FloatArray

logger = logging.getLogger("splitvla.cloud")

# What torch, CUDA and our own slips raise: such a job fails alone, until so many in a row have failed that the GPU must
# be taken for lost (after most CUDA errors every later call fails too, until the process ends). Anything else ends the
# thread, and with it the server, at once, because then nobody knows what state the process is in.
_FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
_FAULTS_IN_A_ROW = 3
_JOIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Tokens:
    """Answer of a backbone: greedy token ids, and where the time went in milliseconds."""

    ids: tuple[int, ...]
    prefill_ms: float
    decode_ms: float
    accepted_draft_tokens: int = 0


class Backbone(Protocol):
    """What the worker needs of a language model. Only the worker's thread calls it."""

    @property
    def vocab_size(self) -> int: ...

    def describe(self) -> str:
        """One line for people: precision, device, parameters, memory."""

    def infer(self, prompt_ids: Sequence[int], patches: FloatArray, dims: int) -> Tokens:
        """`dims` greedy ids after BOS, patches (n, embed_dim) and the rest of the prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame that is ready for the GPU. patches: float32 (n, embed_dim). deadline: monotonic seconds, may be inf."""

    session: int
    sequence: int
    prompt_ids: tuple[int, ...]
    patches: FloatArray
    dims: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Served:
    """Tokens of one frame, and how long it waited for the GPU."""

    tokens: Tokens
    queue_ms: float


@dataclass(frozen=True, slots=True)
class Load:
    """Frames that wait, sessions seen within ten seconds, busy share of the last second."""

    queued: int
    sessions: int
    busy: float


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    frame: Frame
    future: Future[Served]


class GpuWorker:
    """Queue in front of a backbone.

    The queue, the meter and `_closed` are guarded by `_wake`; the backbone belongs to the thread alone. `ready`
    resolves once the backbone is loaded and warm, or holds the error; `ended` resolves when the thread is gone, or
    holds the ServerFault for which it gave up. `_faults`, failed jobs in a row, belongs to the thread.
    """

    def __init__(
        self, load: Callable[[], Backbone], queue_limit: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._load = load
        self._clock = clock
        self._wake = threading.Condition()
        self._queue: FrameQueue[_Job] = FrameQueue(queue_limit)
        self._meter = BusyMeter()
        self._closed = False
        self._faults = 0
        self.ready: Future[Backbone] = _uncancellable()
        self.ended: Future[None] = _uncancellable()
        # A daemon: neither a long load nor a hung GPU may keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="gpu", daemon=True)

    @property
    def vocab_size(self) -> int:
        """Raises Unreachable while the backbone is not ready."""
        if not self.ready.done() or self.ready.exception():
            raise Unreachable("the model is still loading; try again when the health service says SERVING")
        return self.ready.result().vocab_size

    def start(self) -> None:
        self._thread.start()

    def submit(self, frame: Frame) -> Future[Served]:
        """Queue a frame. Cancelling the future takes the frame out of the queue.

        Raises Superseded, DeadlineMissed, Overloaded or Unreachable when it is not admitted.
        """
        job = _Job(frame, Future())
        now = self._clock()
        ticket = Ticket(frame.session, frame.sequence, frame.deadline, now, job)
        with self._wake:
            if self._closed:
                raise Unreachable("the server is going away; connect to another one")
            dropped = self._queue.offer(ticket, now)
            self._wake.notify()
        for leaving in dropped:
            _fail(leaving.ticket.work.future, leaving.error)
        job.future.add_done_callback(lambda future: self._forget(ticket) if future.cancelled() else None)
        return job.future

    def load(self) -> Load:
        now = self._clock()
        with self._wake:
            return Load(len(self._queue), self._queue.sessions(now), self._meter.share(now))

    def close(self) -> None:
        """Refuse new frames, fail the queued ones, and wait briefly for the running one."""
        self._close_queue()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        lost: ServerFault | None = None
        try:
            if (backbone := self._load_backbone()) is not None:
                while self._faults < _FAULTS_IN_A_ROW and (ticket := self._next()) is not None:
                    self._serve(backbone, ticket)
            if self._faults >= _FAULTS_IN_A_ROW:
                lost = ServerFault(
                    f"{self._faults} frames in a row failed on the GPU thread, so the GPU is taken for lost; their "
                    "tracebacks are in the log; start the server again"
                )
        finally:
            self._close_queue()
            if not self.ready.done():
                self.ready.set_exception(ServerFault("the GPU thread ended while it loaded the model; see the log"))
            if lost is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(lost)

    def _load_backbone(self) -> Backbone | None:
        try:
            backbone = self._load()
        except SplitVLAError as error:
            self.ready.set_exception(error)
            return None
        except _FAULTS as error:
            logger.exception("loading the model failed")
            self.ready.set_exception(ServerFault(f"the model can't be loaded: {_first_line(error)}"))
            return None
        self.ready.set_result(backbone)
        return backbone

    def _next(self) -> Ticket[_Job] | None:
        """Wait for the next frame; None when the worker is closed."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or len(self._queue))
                if self._closed:
                    return None
                ticket, dropped = self._queue.take(self._clock())
            for leaving in dropped:
                _fail(leaving.ticket.work.future, leaving.error)
            # False when it was cancelled between leaving the queue and here.
            if ticket is not None and ticket.work.future.set_running_or_notify_cancel():
                return ticket

    def _serve(self, backbone: Backbone, ticket: Ticket[_Job]) -> None:
        frame, future = ticket.work.frame, ticket.work.future
        started = self._clock()
        with self._wake:
            self._meter.begin(started)
        try:
            tokens = backbone.infer(frame.prompt_ids, frame.patches, frame.dims)
            self._faults = 0
            future.set_result(Served(tokens, (started - ticket.queued_at) * 1000))
        except SplitVLAError as error:
            future.set_exception(error)
        except _FAULTS as error:
            self._faults += 1
            logger.exception("session %016x frame %d failed on the GPU thread", frame.session, frame.sequence)
            future.set_exception(ServerFault(f"frame {frame.sequence}: the backbone failed: {_first_line(error)}"))
        finally:
            with self._wake:
                self._meter.end(self._clock())
            if not future.done():
                future.set_exception(ServerFault(f"frame {frame.sequence}: the GPU thread ended; see the server's log"))

    def _forget(self, ticket: Ticket[_Job]) -> None:
        with self._wake:
            self._queue.cancel(ticket)

    def _close_queue(self) -> None:
        with self._wake:
            self._closed = True
            tickets = self._queue.drain()
            self._wake.notify_all()
        for ticket in tickets:
            _fail(ticket.work.future, Unreachable(f"frame {ticket.sequence}: the server is going away"))


def _uncancellable() -> Future:  # type: ignore[type-arg]
    """A future that a waiter's cancellation can't cancel: asyncio.wrap_future passes its own on."""
    future: Future = Future()  # type: ignore[type-arg]
    future.set_running_or_notify_cancel()
    return future


def _fail(future: Future[Served], error: SplitVLAError) -> None:
    # A caller may have cancelled it in this very moment; then nobody waits for the error.
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
