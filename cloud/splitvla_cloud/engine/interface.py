"""What the worker asks of an engine. Knows no torch, so that the server's tests need none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from splitvla_shared.errors import RequestRejected
from splitvla_shared.nouns import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame that is ready for the GPU. Compared by identity.

    patches: float32 (n, embed_dim), put behind the first prompt id (BOS). dims: ids to answer (chunk length times
    action dimensions). deadline: monotonic seconds, may be inf. draft: a guess of the answer, at most `dims` ids; never
    changes the answer.
    """

    session: int
    sequence: int
    prompt_ids: tuple[int, ...]
    patches: FloatArray
    dims: int
    deadline: float
    draft: tuple[int, ...] = ()


def check_frame(frame: Frame, *, hidden: int, tokens: int, free: int, capacity: int) -> None:
    """Can an engine take this frame in? hidden: width of a patch. tokens: of the longest sequence. free: places of
    `capacity`. Raises RequestRejected.
    """
    length = len(frame.prompt_ids) + len(frame.patches) + frame.dims
    if length > tokens:
        raise RequestRejected(
            f"prompt, {len(frame.patches)} patches and answer are {length} tokens, the model takes {tokens}; "
            "shorten the instruction or send fewer cameras"
        )
    if frame.patches.ndim != 2 or frame.patches.shape[1] != hidden or not frame.dims or not free:
        raise RequestRejected(
            f"frame {frame.sequence}: patches {frame.patches.shape}, {frame.dims} ids; expected patches "
            f"(n, {hidden}), at least one id, and one of {capacity} places free"
        )


@dataclass(frozen=True, slots=True)
class Tokens:
    """A whole answer: greedy token ids, and where the time went in milliseconds.

    prefill_ms runs from admission to the first id, decode_ms from there to the last. accepted_draft_tokens: ids of the
    draft that the answer kept.
    """

    ids: tuple[int, ...]
    prefill_ms: float
    decode_ms: float
    accepted_draft_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one frame ended: its tokens, or the error. One outside our tree is a fault of the GPU or of ours."""

    frame: Frame
    result: Tokens | Exception


class Engine(Protocol):
    """Serves up to `capacity` frames at once. Only the worker's thread calls it.

    A frame is admitted, takes part in every `step` until an Outcome names it, or is cancelled.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    @property
    def pass_costs(self) -> Mapping[int, float]:
        """Seconds that a pass with so many new frames took while warming up; empty when none was timed."""

    def describe(self) -> str:
        """One line for people: precision, device, parameters, memory."""

    def admit(self, frame: Frame) -> None:
        """Take a frame in. Raises RequestRejected when the model can't take it; then it is not in."""

    def step(self) -> list[Outcome]:
        """One forward pass for all frames that are in; the frames that it ended, which are out then."""

    def cancel(self, frame: Frame) -> None:
        """Forget a frame that nobody waits for; its place is free at once. One that is not in is no error."""


def serve_alone(frame: Frame, admit: Callable[[Frame], None], step: Callable[[], list[Outcome]]) -> Tokens:
    """The answer of an engine that has nothing else in it. Raises what refused or ended the frame."""
    admit(frame)
    while True:
        for outcome in step():
            if isinstance(outcome.result, Exception):
                raise outcome.result
            return outcome.result
