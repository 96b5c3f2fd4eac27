"""The one thread that owns the GPU: it loads the engine, feeds it frames from the queue and resolves their futures."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from splitvla_cloud.admission import PassCost
from splitvla_cloud.engine.interface import Engine, Frame, Outcome, Tokens
from splitvla_cloud.scheduler import BusyMeter, FrameQueue, Ticket
from splitvla_shared.errors import DeadlineMissed, Overloaded, ServerFault, SplitVLAError, Unreachable

logger = logging.getLogger("splitvla.cloud")

# What torch, CUDA and our own slips raise: such a pass fails alone, until so many in a row have failed that the GPU is
# taken for lost (after most CUDA errors every later call fails too, until the process ends). Anything else ends the
# thread, and with it the server, at once, because then nobody knows what state the process is in.
_FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
_FAULTS_IN_A_ROW = 3
_JOIN_S = 2.0
GPU_THREAD = "gpu"
RETRY_AFTER_S = 0.02  # at least, for whoever is refused because others are served


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


@dataclass(slots=True, eq=False)
class _InEngine:
    """A frame in the engine: when it came there, how long it had waited, and the passes since. Mutable: these."""

    future: Future[Served]
    started: float
    queue_ms: float
    passes: int = 0


class GpuWorker:
    """Queue in front of an engine.

    The queue, the costs, the meter and `_closed` are guarded by `_wake`; the engine, `_running` (the frames that are in
    it) and `_faults` (failures in a row) belong to the thread alone. `ready` resolves once the engine is loaded and
    warm, or holds the error; `ended` resolves when the thread is gone, or holds the ServerFault for which it gave up.
    cost: what is known of passes beforehand.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        queue_limit: int,
        clock: Callable[[], float] = time.monotonic,
        cost: PassCost | None = None,
    ) -> None:
        self._load = load
        self._clock = clock
        self._wake = threading.Condition()
        self._queue: FrameQueue[_Job] = FrameQueue(queue_limit)
        self._cost = cost or PassCost()
        self._meter = BusyMeter()
        self._closed = False
        self._running: dict[Frame, _InEngine] = {}
        self._faults = 0
        self.ready: Future[Engine] = _uncancellable()
        self.ended: Future[None] = _uncancellable()
        # A daemon, so that the interpreter does not wait for it; `__main__.run` sees to the rest.
        self._thread = threading.Thread(target=self._run, name=GPU_THREAD, daemon=True)

    @property
    def vocab_size(self) -> int:
        """Raises Unreachable while the backbone is not ready."""
        if not self.ready.done() or self.ready.exception():
            raise Unreachable("the model is still loading; try again when the health service says SERVING")
        return self.ready.result().vocab_size

    def start(self) -> None:
        self._thread.start()

    def submit(self, frame: Frame) -> Future[Served]:
        """Queue a frame. Cancelling the future takes the frame out of the queue, or out of the engine after its pass.

        Raises Superseded, DeadlineMissed, Overloaded or Unreachable when it is not admitted.
        """
        job = _Job(frame, Future())
        now = self._clock()
        ticket = Ticket(frame.session, frame.sequence, frame.deadline, now, job)
        with self._wake:
            if self._closed:
                raise Unreachable("the server is going away; connect to another one")
            try:
                dropped = self._queue.offer(ticket, now)
            except Overloaded as error:
                # Where the queue will have gone down by half, as far as is known: then there is room for most.
                error.retry_after_s = max(RETRY_AFTER_S, len(self._queue) / 2 * self._cost.of(1))
                raise
            self._wake.notify()
        for leaving in dropped:
            _resolve(leaving.ticket.work.future, leaving.error)
        # Held weakly: a future keeps its callbacks, and through them it would hold itself and the frame's megabytes
        # until the next collection of cycles. While it matters the queue holds the ticket.
        queued = weakref.ref(ticket)
        job.future.add_done_callback(lambda future: self._forget(queued()) if future.cancelled() else None)
        return job.future

    def load(self) -> Load:
        now = self._clock()
        with self._wake:
            return Load(len(self._queue), self._queue.sessions(now), self._meter.share(now))

    def hung_s(self) -> float:
        """How long the running pass has run; 0 when none runs."""
        with self._wake:
            return self._meter.running_s(self._clock())

    def close(self) -> None:
        """Refuse new frames, fail the queued ones, and wait briefly for the running ones.

        The thread may go on: nothing interrupts a load or a hung pass.
        """
        self._close_queue()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        lost: ServerFault | None = None
        try:
            if (engine := self._load_engine()) is not None:
                while self._faults < _FAULTS_IN_A_ROW and self.turn(engine):
                    pass
            if self._faults >= _FAULTS_IN_A_ROW:
                lost = ServerFault(
                    f"{self._faults} passes in a row failed on the GPU thread, so the GPU is taken for lost; their "
                    "tracebacks are in the log; start the server again"
                )
        finally:
            self._close_queue()
            for frame in list(self._running):
                self._answer(frame, ServerFault(f"frame {frame.sequence}: the GPU thread ended; see the server's log"))
            if not self.ready.done():
                self.ready.set_exception(ServerFault("the GPU thread ended while it loaded the model; see the log"))
            if lost is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(lost)

    def turn(self, engine: Engine) -> bool:
        """Let go of frames that nobody waits for, take new ones in, run one pass. False when the worker is closed.

        The thread's loop, or the caller's on simulated time, who never starts the thread. Waits for something to do.
        """
        self._abandon(engine)
        tickets = self._take(engine.capacity)
        if tickets is None:
            return False
        before, now = len(self._running), self._clock()
        for ticket in tickets:  # all of them, before the engine may end the thread over one
            job = ticket.work
            self._running[job.frame] = _InEngine(job.future, now, (now - ticket.queued_at) * 1000)
        for ticket in tickets:
            self._admit(engine, ticket.work.frame)
        if self._running:
            self._step(engine, len(self._running) - before)
        return True

    def _abandon(self, engine: Engine) -> None:
        now = self._clock()
        for frame, served in list(self._running.items()):
            if frame.deadline <= now or served.future.cancelled():
                engine.cancel(frame)
                waited_ms = (now - served.started) * 1000
                late_by = f"frame {frame.sequence}: its deadline passed after {waited_ms:.0f} ms on the GPU"
                self._answer(frame, DeadlineMissed(late_by))

    def _take(self, capacity: int) -> list[Ticket[_Job]] | None:
        """The frames for the next pass, waiting for some while the engine is empty; None when there is an end to it."""
        with self._wake:
            if not self._running:
                self._wake.wait_for(lambda: self._closed or len(self._queue))
                if self._closed:
                    return None
            left = [(frame.deadline, self._rest(frame, served.passes)) for frame, served in self._running.items()]
            after_s = self._cost.of(0)  # what is left then is what is left now less a pass
            limits = [deadline - max(0.0, rest_s - after_s) for deadline, rest_s in left]
            wait_s = max((rest_s for _, rest_s in left), default=0.0)
            room = capacity - len(self._running)
            tickets, dropped = self._queue.take(self._clock(), room, self._cost, limits, wait_s)
        for leaving in dropped:
            _resolve(leaving.ticket.work.future, leaving.error)
        return tickets

    def _rest(self, frame: Frame, passes: int) -> float:
        """Seconds; for the holder of `_wake`. Without a draft a pass gives one id, with one nobody knows how many."""
        return self._cost.rest(passes, least=1 if frame.draft else max(1, frame.dims - passes))

    def _admit(self, engine: Engine, frame: Frame) -> None:
        try:
            engine.admit(frame)
        except SplitVLAError as error:
            self._answer(frame, error)
        except _FAULTS as error:
            self._faults += 1
            self._answer(frame, self._told(Outcome(frame, error)))

    def _step(self, engine: Engine, fresh: int) -> None:
        began = self._clock()
        with self._wake:
            self._meter.begin(began)
        try:
            outcomes = engine.step()
        except _FAULTS as error:  # an engine tells a frame's failure with the frame; this one is everybody's
            outcomes = [Outcome(frame, error) for frame in self._running]
            for outcome in outcomes:
                engine.cancel(outcome.frame)
        finally:
            ended = self._clock()
            with self._wake:
                self._meter.end(ended)
                self._cost.learn(fresh, ended - began, ended)
        for served in self._running.values():
            served.passes += 1
        results = [self._told(outcome) for outcome in outcomes]
        # Of frames that go on the pass has computed an id; what fails beside them fails alone.
        going_on = len(outcomes) < len(self._running)
        computed = going_on or not any(isinstance(result, ServerFault) for result in results)
        if computed or any(isinstance(result, Tokens) for result in results):
            self._faults = 0
        elif any(result is not outcome.result for result, outcome in zip(results, outcomes, strict=True)):
            self._faults += 1
        for outcome, result in zip(outcomes, results, strict=True):
            self._answer(outcome.frame, result)

    def _told(self, outcome: Outcome) -> Tokens | SplitVLAError:
        """What the robot is told; a fault is logged and becomes a ServerFault."""
        frame, result = outcome.frame, outcome.result
        if isinstance(result, (Tokens, SplitVLAError)):
            return result
        logger.error("session %016x frame %d failed on the GPU thread", frame.session, frame.sequence, exc_info=result)
        return ServerFault(f"frame {frame.sequence}: the backbone failed: {_first_line(result)}")

    def _answer(self, frame: Frame, result: Tokens | SplitVLAError) -> None:
        served = self._running.pop(frame)
        if isinstance(result, Tokens):
            with self._wake:
                self._cost.learn_answer(served.passes)
        _resolve(served.future, Served(result, served.queue_ms) if isinstance(result, Tokens) else result)

    def _load_engine(self) -> Engine | None:
        try:
            engine = self._load()
        except SplitVLAError as error:
            self.ready.set_exception(error)
            return None
        except _FAULTS as error:
            logger.exception("loading the model failed")
            self.ready.set_exception(ServerFault(f"the model can't be loaded: {_first_line(error)}"))
            return None
        now = self._clock()
        with self._wake:
            for frames, seconds in engine.pass_costs.items():
                self._cost.learn(frames, seconds, now)
        self.ready.set_result(engine)
        return engine

    def _forget(self, ticket: Ticket[_Job] | None) -> None:
        if ticket is None:
            return
        with self._wake:
            self._queue.cancel(ticket)

    def _close_queue(self) -> None:
        with self._wake:
            self._closed = True
            tickets = self._queue.drain()
            self._wake.notify_all()
        for ticket in tickets:
            _resolve(ticket.work.future, Unreachable(f"frame {ticket.sequence}: the server is going away"))


def _uncancellable() -> Future:  # type: ignore[type-arg]
    """A future that a waiter's cancellation can't cancel: asyncio.wrap_future passes its own on."""
    future: Future = Future()  # type: ignore[type-arg]
    future.set_running_or_notify_cancel()
    return future


def _resolve(future: Future[Served], result: Served | SplitVLAError) -> None:
    """A future stays pending until here, so that its waiter can cancel it as long as nothing has come of it."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(result, Served):
        future.set_result(result)
    else:
        future.set_exception(result)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
