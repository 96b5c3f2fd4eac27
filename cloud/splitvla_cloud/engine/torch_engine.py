"""Our engine: slots of a static cache, one forward pass a step for all robots, drafts verified inside it.

Rules of this file: a step is one pass. Frames that have just come are prefilled in the pass that decodes the others,
so that the weights are read once for all. A failure ends the frame that caused it and no other: when a
pass of several fails, each is tried alone.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from splitvla_cloud.engine.answer import Answer
from splitvla_cloud.engine.cuda import free_memory, out_of_memory
from splitvla_cloud.engine.interface import Frame, Outcome, Tokens, check_frame
from splitvla_cloud.engine.llama import Llama, Shape
from splitvla_cloud.engine.runner import Capture, GraphDiffers, Picked, Rectangle, Runner
from splitvla_shared.errors import EarlyStop, ServerFault, SplitVLAError
from splitvla_shared.nouns import FloatArray

logger = logging.getLogger("splitvla.cloud")

# Prompts of nearly equal length share a rectangle; others would pay for each other's padding.
_LENGTH_STEP = 32
_DECODE_SPAN_STEP = 64
# Captured prefills are as long as attention's kernels on CUDA like their rows.
_LENGTH_ALIGNMENT = 8
# What torch and CUDA raise in a pass. Anything else is a slip of ours that the worker must see.
_PASS_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, MemoryError)


@dataclass(slots=True, eq=False)
class _Sequence:
    """A frame that is in. prompt: ids with a gap for the patches behind the first one."""

    frame: Frame
    slot: int
    prompt: list[int]
    answer: Answer
    began: float = field(default_factory=time.perf_counter)
    prefilled: float | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """A sequence's line of a rectangle, or an idle one that only fills it up."""

    slot: int
    start: int = 0
    first: int = 0
    ids: Sequence[int] = ()
    patches: FloatArray | None = None


class TorchEngine:
    """Serves `capacity` frames at once, each of up to `tokens` prompt, patch and answer tokens.

    eos: ids that end an answer. allowed: ids that may be picked, None for the whole vocabulary. Owned by one thread.
    """

    def __init__(
        self, llama: Llama, *, vocab_size: int, capacity: int, tokens: int, eos: frozenset[int], allowed: range | None
    ) -> None:
        self._llama, self._eos, self._tokens = llama, eos, tokens
        self.vocab_size, self.capacity = vocab_size, capacity
        # One slot more than robots: a captured graph of a larger batch puts its idle sequences there.
        self._cache = llama.new_cache(capacity + 1, tokens)
        self._runner = Runner(llama, self._cache, (capacity + 1) * (tokens + 1), allowed)
        # A heap: the lowest places are taken first, because decoding computes all up to the highest one in use.
        self._free = list(range(capacity))
        self._sequences: list[_Sequence] = []

    def admit(self, frame: Frame, eos: frozenset[int] | None = None) -> None:
        """As the interface says; eos: other ids that end this answer."""
        check_frame(frame, hidden=self._llama.hidden, tokens=self._tokens, free=len(self._free), capacity=self.capacity)
        prompt = [frame.prompt_ids[0], *[0] * len(frame.patches), *frame.prompt_ids[1:]]
        answer = Answer(frame.dims, frame.draft, self._eos if eos is None else eos)
        self._sequences.append(_Sequence(frame, heapq.heappop(self._free), prompt, answer))

    def cancel(self, frame: Frame) -> None:
        for sequence in self._sequences:
            if sequence.frame is frame:
                self._leave(sequence)
                return

    def step(self) -> list[Outcome]:
        if not self._sequences:
            return []
        sequences = list(self._sequences)
        try:
            predictions = self._pass(sequences)
        except _PASS_ERRORS as error:
            free_memory(error)
            return self._one_by_one(sequences) if len(sequences) > 1 else [self._failed(sequences[0], error)]
        return [out for pair in zip(sequences, predictions, strict=True) if (out := self._take(*pair)) is not None]

    def score(self, prompt_ids: Sequence[int], patches: FloatArray, ids: Sequence[int]) -> torch.Tensor:
        """Teacher-forced logits, float32 (len(ids), vocabulary); needs a free place."""
        frame = Frame(0, 0, tuple(prompt_ids), patches, len(ids), 0.0, tuple(ids))
        self.admit(frame)
        try:
            return self._runner.logits(self._prefill([self._sequences[-1]], _as_it_is))
        finally:
            self.cancel(frame)

    def capture(self, lengths: Sequence[int], dims: int, capture: Capture) -> int:
        """Capture prefills of these lengths and more, and decoding behind the longest, for 1, 2, 4 … frames; how many.

        Where one can't be captured, it and those behind it run directly; one that computes something else than the pass
        itself is dropped, alone. The log says so.
        """
        for shape in self._usual_shapes(lengths, dims):
            if not self._capture(shape, capture):
                break
        return self._runner.captured

    def _capture(self, shape: Shape, capture: Capture) -> bool:
        """False where there is no use in trying further ones."""
        try:
            self._runner.capture(shape, capture)
        except GraphDiffers as error:
            logger.warning("passes like %s run without a CUDA graph: %s", shape, error)
        except RuntimeError as error:
            free_memory(error)
            logger.warning("passes like %s run without CUDA graphs", shape, exc_info=error)
            return False
        return True

    def _usual_shapes(self, lengths: Sequence[int], dims: int) -> list[Shape]:
        """Those of small batches first: a large one may not fit into memory."""
        aligned = [min(_aligned(length, _LENGTH_ALIGNMENT), self._tokens) for length in lengths]
        span = min(_aligned(max(lengths) + dims, _DECODE_SPAN_STEP), self._tokens)
        batches = [size for size in (1, 2, 4, 8, 16, 32) if size <= self.capacity]
        return [
            shape
            for batch in batches
            for shape in (
                *(Shape(batch, length, dims) for length in aligned),
                *(Shape(batch, width, width, span) for width in sorted({1, dims})),
            )
        ]

    def _pass(self, sequences: Sequence[_Sequence]) -> Picked:
        """One forward pass; what is predicted for each of the sequences, in their order."""
        parts = _rectangles(sequences)
        # A graph holds one rectangle; a pass of several is not captured, and padding to a graph's shape would be waste.
        fit = self._runner.fit if len(parts) == 1 else _as_it_is
        rectangles = [self._decode(part, fit) if part[0].answer.ids else self._prefill(part, fit) for part in parts]
        found = self._runner.run(rectangles)
        results: dict[int, list[tuple[int, bool]]] = {}
        at = 0
        for rectangle in rectangles:
            results |= dict(zip(rectangle.slots, found[at : at + rectangle.shape.batch], strict=True))
            at += rectangle.shape.batch
        return [results[sequence.slot] for sequence in sequences]

    def _prefill(self, part: Sequence[_Sequence], fit: Callable[[Shape], Shape]) -> Rectangle:
        rows = [
            _Row(each.slot, 0, len(each.prompt) - 1, [*each.prompt, *each.answer.guesses()], each.frame.patches)
            for each in part
        ]
        asked = 1 + max(len(sequence.answer.guesses()) for sequence in part)
        return self._rectangle(fit(Shape(len(rows), max(len(row.ids) for row in rows), asked)), rows)

    def _decode(self, part: Sequence[_Sequence], fit: Callable[[Shape], Shape]) -> Rectangle:
        """A line for every place up to the highest one in use, because line i reads place i; the others are idle."""
        rows = [_Row(self.capacity)] * (1 + max(sequence.slot for sequence in part))
        for each in part:
            start = len(each.prompt) + len(each.answer.ids) - 1
            rows[each.slot] = _Row(each.slot, start, ids=[each.answer.ids[-1], *each.answer.guesses()])
        length = max(len(row.ids) for row in rows)
        span = max(row.start + len(row.ids) for row in rows)
        return self._rectangle(fit(Shape(len(rows), length, length, span)), rows)

    def _rectangle(self, shape: Shape, rows: Sequence[_Row]) -> Rectangle:
        """Padded on the right to the shape's length; to its batch with idle lines, which write to the spare slot."""
        rows = [*rows, *[_Row(self.capacity)] * (shape.batch - len(rows))]
        return Rectangle(
            shape,
            [row.slot for row in rows],
            [row.start for row in rows],
            [row.first for row in rows],
            [[*row.ids, *[0] * (shape.length - len(row.ids))] for row in rows],
            [row.patches for row in rows],
        )

    def _take(self, sequence: _Sequence, predicted: list[tuple[int, bool]]) -> Outcome | None:
        """Note what a pass predicted; the outcome when that ended the frame."""
        answer = sequence.answer
        try:
            answer.take([best for best, _ in predicted], [finite for _, finite in predicted])
        except SplitVLAError as error:
            return self._failed(sequence, error)
        now = time.perf_counter()
        sequence.prefilled = sequence.prefilled or now
        if not answer.done:
            return None
        self._leave(sequence)
        prefill_ms, decode_ms = (sequence.prefilled - sequence.began) * 1e3, (now - sequence.prefilled) * 1e3
        return Outcome(sequence.frame, Tokens(tuple(answer.ids), prefill_ms, decode_ms, answer.accepted))

    def _one_by_one(self, sequences: Sequence[_Sequence]) -> list[Outcome]:
        """A pass of all of them failed: each alone, so that only those leave that fail alone too."""
        outcomes = []
        for sequence in sequences:
            try:
                (predicted,) = self._pass([sequence])
            except _PASS_ERRORS as error:  # noqa: PERF203 - each of them is to fail alone
                free_memory(error)
                outcomes.append(self._failed(sequence, error))
            else:
                outcomes += [out] if (out := self._take(sequence, predicted)) is not None else []
        return outcomes

    def _failed(self, sequence: _Sequence, error: Exception) -> Outcome:
        self._leave(sequence)
        if not isinstance(error, EarlyStop):
            try:  # what it wrote may not be finite, and the next frame in its place may be shorter
                self._cache.clear(sequence.slot)
            except RuntimeError as broken:  # after most CUDA errors nothing works any more: the worker counts faults
                error.__context__ = broken
        if out_of_memory(error):
            smaller = "serve with a smaller max_batch" if self.capacity > 1 else "take a device with more memory"
            error = ServerFault(
                f"frame {sequence.frame.sequence}: out of memory on {self._llama.device} with "
                f"{len(sequence.prompt)} tokens; {smaller} or another precision"
            )
        return Outcome(sequence.frame, error)

    def _leave(self, sequence: _Sequence) -> None:
        self._sequences.remove(sequence)
        heapq.heappush(self._free, sequence.slot)


def _rectangles(sequences: Sequence[_Sequence]) -> list[list[_Sequence]]:
    """The sequences that are decoded, and those to prefill by length."""
    parts: dict[int, list[_Sequence]] = {}
    for sequence in sequences:
        prefill = not sequence.answer.ids
        parts.setdefault(-(-len(sequence.prompt) // _LENGTH_STEP) if prefill else 0, []).append(sequence)
    return list(parts.values())


def _aligned(number: int, step: int) -> int:
    return -(-number // step) * step


def _as_it_is(shape: Shape) -> Shape:
    return shape
