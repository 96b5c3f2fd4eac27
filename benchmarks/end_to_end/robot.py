"""A robot that sends recorded embeddings at its control rate: one process of the scale table and of the soak.

    python -m benchmarks.end_to_end.robot JOB.json      (started by fleet.py)

It says "ready" when it is connected, is told on standard input when to start, and ends with one JSON object.
It encodes nothing, so that the processors belong to the server that is measured. One call in flight, the newest frame
wins, nothing is repeated, the last answer is the draft of the next: what EdgePolicy does, without the model.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from splitvla_edge.link.calls import CameraPayload, InferCall
from splitvla_edge.link.grpc_link import GrpcLink
from splitvla_edge.link.security import Security
from splitvla_shared.actions import detokenize
from splitvla_shared.errors import LinkError
from splitvla_shared.nouns import EncodedTensor, Scheme

READY = "ready"
_CONNECT_S = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """payloads: files of one camera's payload each. vocab_size, bins: of the action tokens.

    offset_s: of its first call from the start, seconds: until the end.
    tls: files of authority, certificate and key, or none.
    """

    server: str
    fingerprint: str
    instruction: str
    action_dims: int
    scheme: int
    shape: tuple[int, int]
    payloads: tuple[str, ...]
    vocab_size: int = 32000
    bins: int = 256
    control_hz: float = 5.0
    deadline_s: float = 1.0
    name: str = ""
    offset_s: float = 0.0
    seconds: float = 0.0
    tls: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(**fields | {name: tuple(fields[name]) for name in ("shape", "payloads", "tls")})


@dataclass(frozen=True, slots=True)
class Told:
    """What a robot saw. latencies_ms: of each answer. at_s, missed_at_s: after the start, of answers, misses.

    model_ms: of each answer, what the server says that the model took. accepted: draft tokens that were right, in all.
    """

    latencies_ms: tuple[float, ...]
    at_s: tuple[float, ...]
    misses: dict[str, int]
    cpu_s: float
    rss_bytes: int
    missed_at_s: tuple[float, ...] = ()
    model_ms: tuple[float, ...] = ()
    accepted: int = 0

    @classmethod
    def read(cls, text: str) -> Told:
        fields = json.loads(text)
        series = ("latencies_ms", "at_s", "missed_at_s", "model_ms")
        return cls(**fields | {name: tuple(fields[name]) for name in series})


def drive(job: Job, ready: Callable[[], float]) -> Told:
    """Connect, say so, and call from the moment on that `ready` gives (monotonic seconds of this machine)."""
    scheme, rows_dim = Scheme(job.scheme), (job.shape[0], job.shape[1])
    tensors = [EncodedTensor(scheme, rows_dim, Path(file).read_bytes()) for file in job.payloads]
    latencies: list[float] = []
    at: list[float] = []
    misses: Counter[str] = Counter()
    missed_at: list[float] = []
    model: list[float] = []
    draft: tuple[int, ...] = ()
    accepted = 0
    with GrpcLink(job.server, security=Security(*map(Path, job.tls)) if job.tls else None) as link:
        link.describe(_CONNECT_S)
        session, frame, period = secrets.randbits(64), 0, 1 / job.control_hz
        begin = ready()
        first, end = begin + job.offset_s, begin + job.seconds
        cpu_before = sum(psutil.Process().cpu_times()[:2])
        while (now := time.monotonic()) < end:
            due = first + frame * period
            if now < due:
                time.sleep(due - now)
                continue
            frame = int((now - first) / period) + 1  # frames that were missed meanwhile are gone
            started = time.monotonic()
            try:
                reply = link.infer(_call(job, session, frame, tensors, draft), job.deadline_s)
            except LinkError as error:
                misses[type(error).__name__] += 1
                missed_at.append(time.monotonic() - begin)
            else:
                ended = time.monotonic()
                latencies.append((ended - started) * 1e3)
                at.append(ended - begin)
                model.append(reply.stages.prefill_ms + reply.stages.decode_ms)
                accepted += reply.accepted_draft_tokens
                clipped = detokenize(reply.tokens, vocab_size=job.vocab_size, bins=job.bins).clipped
                draft = () if clipped else reply.tokens
    process = psutil.Process()
    cpu_s = sum(process.cpu_times()[:2]) - cpu_before
    rss = process.memory_info().rss
    return Told(tuple(latencies), tuple(at), dict(misses), cpu_s, rss, tuple(missed_at), tuple(model), accepted)


def _call(job: Job, session: int, frame: int, tensors: Sequence[EncodedTensor], draft: tuple[int, ...]) -> InferCall:
    return InferCall(
        fingerprint=job.fingerprint,
        session=session,
        sequence=frame,
        robot=job.name,
        instruction=job.instruction,
        cameras=(CameraPayload("camera0", tensors[frame % len(tensors)]),),
        action_dims=job.action_dims,
        draft_tokens=draft,
    )


def _told_to_start() -> float:
    print(READY, flush=True)
    return float(sys.stdin.readline())


def main() -> None:
    print(json.dumps(dataclasses.asdict(drive(Job.read(Path(sys.argv[1])), _told_to_start))))


if __name__ == "__main__":
    main()
