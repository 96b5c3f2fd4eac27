"""What a server answered to a frame: as it is told to whoever listens, and as numbers of the model's own range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitvla_edge.link.calls import Reply
from splitvla_edge.model import EdgeModel
from splitvla_shared.actions import Detokenized, detokenize
from splitvla_shared.nouns import ActionArray, FloatArray, Observation


@dataclass(frozen=True, slots=True)
class Answer:
    """One frame as the edge saw it, and what the server said to it.

    patches: (patches, embed_dim) a camera. normalized: (chunk_length, dims) in [-1, 1]. tokens: none of a continuous
    head.
    """

    observation: Observation
    patches: tuple[FloatArray, ...]
    normalized: ActionArray
    tokens: tuple[int, ...]


def normalized_answer(reply: Reply, model: EdgeModel) -> Detokenized:
    """The reply's action as (chunk_length, dims), of tokens or of a continuous head."""
    spec = model.spec
    if reply.chunk is not None:
        said = Detokenized(reply.chunk.astype(np.float64), ())
    else:
        said = detokenize(reply.tokens, vocab_size=spec.action_vocab_size, bins=spec.action_bins)
    return Detokenized(said.normalized.reshape(spec.chunk_length, model.statistics.dims), said.clipped)
