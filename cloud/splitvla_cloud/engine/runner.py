"""Runs forward passes: from lists on the host to picked ids on the host, directly or as a captured CUDA graph.

Rules of this file: inputs lie in buffers that are allocated once, at places that depend on the pass's shapes alone,
because a captured graph reads fixed addresses; one copy to the device before a pass besides the patches, one
synchronisation after it, which fetches the ids. Without captured graphs (on a CPU always) the same code runs directly.
A graph is served from only when its replay has picked the ids that the pass itself picks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from splitvla_cloud.engine.kv_cache import KVCache
from splitvla_cloud.engine.llama import Group, Llama, Shape
from splitvla_shared.nouns import FloatArray

_PADDING = 1.25  # rows of a captured prefill to those asked for


@dataclass(frozen=True, slots=True)
class Rectangle:
    """One group of a pass as the host sees it; one entry a sequence, shape.batch of them.

    ids: shape.length a sequence, any id where there is padding or a patch. patches: put over the rows from 1 on.
    """

    shape: Shape
    slots: Sequence[int]
    starts: Sequence[int]
    firsts: Sequence[int]
    ids: Sequence[Sequence[int]]
    patches: Sequence[FloatArray | None]


# For each sequence, behind each asked row: the picked id, and whether its logits are finite.
Picked = list[list[tuple[int, bool]]]


class Captured(Protocol):
    """A computation that can be run again on what its input buffers hold then."""

    @property
    def result(self) -> torch.Tensor: ...

    def replay(self) -> None: ...


class GraphDiffers(Exception):  # noqa: N818 - no fault that anybody waits for
    """A captured pass does not compute what the pass itself does."""


Capture = Callable[[Callable[[], torch.Tensor]], Captured]


class Runner:
    """Owned by the engine, used by its thread. Mutable: the buffers, and the graphs captured so far.

    rows: the most rows that a pass may have. allowed: ids that may be picked, None for all.
    """

    def __init__(self, llama: Llama, cache: KVCache, rows: int, allowed: range | None) -> None:
        self._llama, self._cache, self._allowed = llama, cache, allowed
        on_gpu = llama.device != "cpu"
        self._rows = torch.zeros(rows, llama.hidden, dtype=llama.dtype, device=llama.device)
        # ids of all rows, then slots, starts and firsts of each group: together never more than four numbers a row.
        self._host = torch.zeros(4 * rows, dtype=torch.int64, pin_memory=on_gpu)
        self._ints = torch.zeros(4 * rows, dtype=torch.int64, device=llama.device)
        self._staged = torch.zeros(rows, llama.hidden, dtype=llama.dtype, pin_memory=True) if on_gpu else None
        self._graphs: dict[Shape, Captured] = {}

    @property
    def captured(self) -> int:
        """Graphs that passes are served from."""
        return len(self._graphs)

    @torch.inference_mode()
    def run(self, rectangles: Sequence[Rectangle]) -> Picked:
        """For each sequence of each rectangle: the picked id behind each asked row, and whether its logits are finite.

        Idle sequences of a padded rectangle are among them.
        """
        shapes = [rectangle.shape for rectangle in rectangles]
        self._fill(rectangles)
        graph = self._graphs.get(shapes[0]) if len(shapes) == 1 else None
        if graph is not None:
            graph.replay()
            picked = graph.result
        else:
            picked = self._compute(shapes)
        flat = [(int(best), bool(finite)) for best, finite in picked.tolist()]
        results, at = [], 0
        for shape in shapes:
            for _ in range(shape.batch):
                results.append(flat[at : at + shape.asked])
                at += shape.asked
        return results

    @torch.inference_mode()
    def logits(self, rectangle: Rectangle) -> torch.Tensor:
        """float32 (batch * asked, vocabulary) of one rectangle, on the device."""
        self._fill([rectangle])
        rows = self._rows[: rectangle.shape.batch * rectangle.shape.length]
        return self._llama.logits(self._llama.forward(rows, self._groups([rectangle.shape]), self._cache))

    @torch.inference_mode()
    def capture(self, shape: Shape, capture: Capture) -> None:
        """Capture a pass of one rectangle. Overwrites the first slots of the cache: call before serving.

        Raises what capturing raises, and GraphDiffers where the replay picks other ids than the pass itself, on the
        same inputs; then the pass goes on running directly.
        """
        trial = _trial(shape, len(self._llama.embed_tokens.weight))
        if shape.span:
            self._cache.fill_with_noise()
        expected = self.run([trial])
        self._graphs[shape] = capture(lambda: self._compute([shape]))
        try:
            if (found := self.run([trial])) != expected:
                raise GraphDiffers(_difference(found, expected))
        except (GraphDiffers, RuntimeError):  # of the replay itself, too: no graph serves that has not been tried
            del self._graphs[shape]
            for slot in trial.slots:  # whose keys and values the graph has written
                self._cache.clear(slot)
            raise

    def fit(self, shape: Shape) -> Shape:
        """The smallest captured shape that covers this one, or else the shape itself.

        A prefill's rows cost what its products take: more than `_PADDING` of them idle costs more than a graph saves.
        """
        most = math.inf if shape.span else _PADDING * shape.batch * shape.length
        covering = [known for known in self._graphs if _covers(known, shape) and known.batch * known.length <= most]
        return min(covering, key=lambda known: (known.batch * known.length, known.span), default=shape)

    def _compute(self, shapes: Sequence[Shape]) -> torch.Tensor:
        rows = self._rows[: sum(shape.batch * shape.length for shape in shapes)]
        return self._llama.pick(self._llama.forward(rows, self._groups(shapes), self._cache), self._allowed)

    def _groups(self, shapes: Sequence[Shape]) -> list[Group]:
        """Views of the input buffer."""
        groups, at = [], sum(shape.batch * shape.length for shape in shapes)
        for shape in shapes:
            slots, starts, firsts = torch.split(self._ints[at : at + 3 * shape.batch], shape.batch)
            groups.append(Group(shape, slots, starts, firsts))
            at += 3 * shape.batch
        return groups

    def _fill(self, rectangles: Sequence[Rectangle]) -> None:
        numbers = [number for rectangle in rectangles for row in rectangle.ids for number in row]
        total = len(numbers)
        for rectangle in rectangles:
            numbers += [*rectangle.slots, *rectangle.starts, *rectangle.firsts]
        self._host[: len(numbers)] = torch.tensor(numbers)
        self._ints[: len(numbers)].copy_(self._host[: len(numbers)], non_blocking=True)
        torch.index_select(self._llama.embed_tokens.weight, 0, self._ints[:total], out=self._rows[:total])
        at = 0
        for rectangle in rectangles:
            for patches in rectangle.patches:
                if patches is not None:
                    self._put_patches(at + 1, patches)
                at += rectangle.shape.length

    def _put_patches(self, first: int, patches: FloatArray) -> None:
        rows, source = slice(first, first + len(patches)), torch.from_numpy(patches)
        if self._staged is None:
            self._rows[rows].copy_(source)
        else:
            self._staged[rows].copy_(source)
            self._rows[rows].copy_(self._staged[rows], non_blocking=True)


def _trial(shape: Shape, vocabulary: int) -> Rectangle:
    """Fixed inputs for a pass of this shape: other ids in every row, and as far back in the cache as it can look."""
    count = shape.batch * shape.length
    ids = [(7 + 31 * row) % vocabulary for row in range(count)]
    return Rectangle(
        shape,
        slots=range(shape.batch),
        starts=[max(0, shape.span - shape.length)] * shape.batch,
        firsts=[shape.length - shape.asked] * shape.batch,
        ids=[ids[first : first + shape.length] for first in range(0, count, shape.length)],
        patches=[None] * shape.batch,
    )


def _difference(found: Picked, expected: Picked) -> str:
    pairs = [pair for lines in zip(found, expected, strict=True) for pair in zip(*lines, strict=True)]
    wrong = [(got, right) for got, right in pairs if got != right]
    (got, finite), (right, _) = wrong[0]
    what = f"id {got}" if finite else "logits that are not finite"
    return (
        f"replayed it gives {what} where the pass itself gives id {right}, and so at {len(wrong)} of {len(pairs)} rows"
    )


def _covers(known: Shape, shape: Shape) -> bool:
    return (
        known.batch >= shape.batch
        and known.length >= shape.length
        and known.asked >= shape.asked
        and bool(known.span) == bool(shape.span)
        and known.span >= shape.span
    )
