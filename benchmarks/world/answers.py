"""The trained policy's own answers to frames on disk, as a recording: what `run --record-distill` records on a robot.

The embeddings are the bundle's ONNX encoder's, as on a robot; the tokens are the unsplit policy's, which the split one
gives too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.progress import track

from benchmarks.world.actor import Actor
from benchmarks.world.shards import TASK_NAMES, Shard, shard_paths
from benchmarks.world.vocabulary import STATISTICS_KEY, action_statistics
from splitvla_cloud.split import split
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.robots.metaworld.tasks import TASKS
from splitvla_shared.actions import detokenize, parse_statistics
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.recording import Answers, write_answers

_AT_ONCE = 32


def record_answers(checkpoint: Path, frames: Path, out: Path, count: int, threads: int) -> None:
    """Write about `count` frames, evenly from all shards, one file a shard: neighbours in time stay together."""
    out.mkdir(parents=True, exist_ok=True)
    shards = shard_paths(frames)
    with tempfile.TemporaryDirectory() as folder:
        split(checkpoint, Path(folder) / "bundles")
        bundle = open_bundle(Path(folder) / "bundles" / "edge", "edge")
        encoder, actor = OnnxEncoder(bundle, threads), Actor.load(checkpoint)
        lengths = [len(Shard.open(path)) for path in shards]
        stride = max(1, round(sum(lengths) / count))
        for number, path in enumerate(track(shards, "answers")):
            shard = Shard.open(path)
            kept = range(number % stride, len(shard), stride)
            if kept:
                write_answers(out / f"answers-world-{number:05}.npz", _answers(shard, kept, bundle, encoder, actor))


def _answers(shard: Shard, kept: range, bundle: Bundle, encoder: OnnxEncoder, actor: Actor) -> Answers:
    spec = bundle.spec
    tasks = shard.tasks[kept.start : kept.stop : kept.step]
    instructions = tuple(TASKS[name].instruction for name in TASK_NAMES)
    tokens = np.concatenate([
        actor.tokens([shard.images[i] for i in some], [instructions[shard.tasks[i]] for i in some]).numpy()
        for some in _batches(kept)
    ])  # fmt: skip
    said = detokenize(tokens.ravel().tolist(), vocab_size=spec.action_vocab_size, bins=spec.action_bins)
    return Answers(
        fingerprint=spec.fingerprint,
        still=parse_statistics(action_statistics())[STATISTICS_KEY].still,
        patches=np.stack([encoder.embed(shard.images[i]).astype(np.float16) for i in kept]),
        normalized=said.normalized.reshape(len(tokens), 1, -1).astype(np.float32),
        tokens=tokens.astype(np.int32),
        instructions=instructions,
        instruction=tasks.astype(np.int64),
    )


def _batches(kept: range) -> Iterator[range]:
    for first in range(0, len(kept), _AT_ONCE):
        yield kept[first : first + _AT_ONCE]
