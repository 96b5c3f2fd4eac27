"""vLLM behind our interface: its scheduler batches the frames, its kernels compute; what counts as an answer is ours.

Rules of this file: vLLM is handed embeddings and says one id a frame and step; `Answer` judges each, as it does for our
own engine, so that early ends and numbers that are not finite are found in the same place. What is not finite must not
stay in vLLM's cache: its blocks are handed on as they are, and a masked key still takes part in a product with zero.
Drafts are not used: vLLM takes none with an embedded prompt. A step that fails fails for all frames in it, so each is
then served alone.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from splitvla_cloud.engine.answer import Answer
from splitvla_cloud.engine.cuda import free_memory, out_of_memory
from splitvla_cloud.engine.interface import Frame, Outcome, Tokens, check_frame
from splitvla_shared.errors import ServerFault, SplitVLAError
from splitvla_shared.nouns import FloatArray

# What vLLM, torch and CUDA raise in a step. Anything else is a slip of ours that the worker must see.
_STEP_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError, MemoryError)


class Library(Protocol):
    """What is used of vllm.v1.engine.llm_engine.LLMEngine, as of vLLM 0.32."""

    def add_request(self, request_id: str, prompt: Any, params: Any) -> Any:
        """prompt: a vllm.inputs.engine.EmbedsInput. params: a vllm.SamplingParams."""

    def step(self) -> Sequence[Any]:
        """One forward pass; a vllm.RequestOutput for each request that it gave an id."""

    def abort_request(self, request_ids: list[str]) -> None:
        """Forget requests; unknown ones are no error."""

    def collective_rpc(self, method: Callable[[Any], None]) -> Any:
        """Call it with each of vLLM's workers."""


@dataclass(slots=True, eq=False)
class _Request:
    """A frame that is in. prefilled: when its first id came."""

    frame: Frame
    eos: frozenset[int]
    answer: Answer
    began: float = field(default_factory=time.perf_counter)
    prefilled: float | None = None


class VllmEngine:
    """Serves `capacity` frames at once, each of up to `tokens` prompt, patch and answer tokens.

    embeddings: (vocabulary, hidden) of the model, on the CPU and in its dtype. params: count of ids, and how many log
    probabilities come with each (-1: all), to vllm.SamplingParams. clean: takes what is not finite out of the cache of
    one of vLLM's workers. eos: ids that end an answer. Owned by one thread.
    """

    def __init__(
        self,
        library: Library,
        embeddings: torch.Tensor,
        params: Callable[[int, int], Any],
        clean: Callable[[Any], None],
        *,
        capacity: int,
        tokens: int,
        eos: frozenset[int],
    ) -> None:
        self._library, self._embeddings, self._params = library, embeddings, params
        self._clean, self._eos, self._tokens = clean, eos, tokens
        self.capacity = capacity
        self._requests: dict[str, _Request] = {}
        self._names = itertools.count(1)

    @property
    def hidden(self) -> int:
        return int(self._embeddings.shape[1])

    @property
    def vocab_size(self) -> int:
        return len(self._embeddings)

    def admit(self, frame: Frame, eos: frozenset[int] | None = None) -> None:
        """As the interface says; eos: other ids that end this answer."""
        check_frame(
            frame,
            hidden=self.hidden,
            tokens=self._tokens,
            free=self.capacity - len(self._requests),
            capacity=self.capacity,
        )
        self._enter(frame, self._eos if eos is None else eos)

    def cancel(self, frame: Frame) -> None:
        for name, request in self._requests.items():
            if request.frame is frame:
                self._leave(name)
                return

    def step(self) -> list[Outcome]:
        if not self._requests:
            return []
        try:
            outputs = self._library.step()
        except _STEP_ERRORS as error:
            return self._one_by_one(error)
        return [outcome for output in outputs if (outcome := self._take(output)) is not None]

    def score(self, prompt_ids: Sequence[int], patches: FloatArray, ids: Sequence[int]) -> FloatArray:
        """Teacher-forced log probabilities, float32 (len(ids), vocabulary): logits up to a constant a row.

        A request for each position, because vLLM tells nothing of the ids of an embedded prompt.
        """
        prompt = self._embed(prompt_ids, patches)
        rows: dict[str, FloatArray] = {}
        names = [self._name() for _ in ids]
        for index, name in enumerate(names):
            told = torch.cat([prompt, self._embeddings[list(ids[:index])]])
            self._library.add_request(name, _prompt(told), self._params(1, -1))
        while len(rows) < len(names):
            for output in self._library.step():
                (logprobs,) = output.outputs[0].logprobs
                row = np.full(self.vocab_size, -np.inf, dtype=np.float32)
                row[list(logprobs)] = [entry.logprob for entry in logprobs.values()]
                rows[output.request_id] = row
        return np.stack([rows[name] for name in names])

    def _enter(self, frame: Frame, eos: frozenset[int]) -> str:
        name = self._name()
        prompt = _prompt(self._embed(frame.prompt_ids, frame.patches))
        self._library.add_request(name, prompt, self._params(frame.dims, 0))
        self._requests[name] = _Request(frame, eos, Answer(frame.dims, (), eos))
        return name

    def _name(self) -> str:
        return str(next(self._names))

    def _embed(self, prompt_ids: Sequence[int], patches: FloatArray) -> torch.Tensor:
        """(n, hidden) in the model's dtype, the patches behind the first id."""
        text = self._embeddings[list(prompt_ids)]
        return torch.cat([text[:1], torch.from_numpy(patches).to(text.dtype), text[1:]])

    def _take(self, output: Any) -> Outcome | None:
        """Note the ids that a step gave a frame; the outcome when that ended it."""
        request = self._requests.get(output.request_id)
        if request is None:  # cancelled while it was computed
            return None
        said, answer = output.outputs[0], request.answer
        try:
            for token, logprobs in zip(said.token_ids, said.logprobs or (), strict=True):
                answer.take([int(token)], [math.isfinite(logprobs[token].logprob)])
            if output.finished and not answer.done:
                raise ServerFault(
                    f"frame {request.frame.sequence}: vLLM ended the answer behind {len(answer.ids)} of "
                    f"{request.frame.dims} ids: {said.finish_reason}"
                )
        except SplitVLAError as error:
            self._leave(output.request_id)
            return Outcome(request.frame, error)
        now = time.perf_counter()
        if answer.ids and request.prefilled is None:
            request.prefilled = now
        if not answer.done or request.prefilled is None:
            return None
        del self._requests[output.request_id]
        prefill_ms, decode_ms = (request.prefilled - request.began) * 1e3, (now - request.prefilled) * 1e3
        return Outcome(request.frame, Tokens(tuple(answer.ids), prefill_ms, decode_ms))

    def _one_by_one(self, error: Exception) -> list[Outcome]:
        """A step of all of them failed: each alone from its beginning, so that only those leave that fail alone too."""
        requests = list(self._requests.values())
        for name in list(self._requests):
            self._leave(name)
        if len(requests) == 1:
            return [self._failed(requests[0].frame, error)]
        return [self._alone(request) for request in requests]

    def _alone(self, request: _Request) -> Outcome:
        name = self._enter(request.frame, request.eos)
        try:
            while True:
                for output in self._library.step():
                    if (outcome := self._take(output)) is not None:
                        return outcome
        except _STEP_ERRORS as error:
            self._leave(name)
            return self._failed(request.frame, error)

    def _failed(self, frame: Frame, error: Exception) -> Outcome:
        if out_of_memory(error):
            free_memory(error)
            error = ServerFault(
                f"frame {frame.sequence}: out of memory; serve with a smaller max_batch or on a larger GPU"
            )
        return Outcome(frame, error)

    def _leave(self, name: str) -> None:
        """Its blocks of the cache are free with the next step, and hold nothing that is not finite."""
        del self._requests[name]
        self._library.abort_request([name])
        self._library.collective_rpc(self._clean)


def _prompt(embeddings: torch.Tensor) -> dict[str, Any]:
    return {"type": "embeds", "prompt_embeds": embeddings}
