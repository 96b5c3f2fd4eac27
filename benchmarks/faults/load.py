"""Other robots on the same server: sessions that each send the next frame as soon as the last one is answered."""

from __future__ import annotations

import secrets
import sys
import threading
import time
from pathlib import Path

import numpy as np

from splitvla_edge.link.calls import CameraPayload, InferCall
from splitvla_edge.link.grpc_link import GrpcLink
from splitvla_shared.bundle import open_bundle
from splitvla_shared.codec import encode
from splitvla_shared.errors import LinkError
from splitvla_shared.nouns import Scheme
from splitvla_shared.spec import ModelSpec

SESSIONS = 40  # a robot has one frame in flight, and is answered within a third of its period: ten times too many
_DEADLINE_S = 0.3
_PAUSE_S = 0.005


def send_on(link: GrpcLink, spec: ModelSpec) -> None:
    """One session, for ever."""
    patches = np.zeros((spec.patches, spec.embed_dim), np.float32)
    payload = CameraPayload("camera0", encode(patches, Scheme.BF16))
    session, sequence = secrets.randbits(64), 0
    while True:
        sequence += 1
        call = InferCall(spec.fingerprint, session, sequence, "load", "go", (payload,), spec.max_action_dims)
        try:
            link.infer(call, _DEADLINE_S)
        except LinkError:
            time.sleep(_PAUSE_S)


def main() -> None:
    bundle, address = sys.argv[1:]
    spec = open_bundle(Path(bundle), "edge").spec
    for _ in range(SESSIONS):
        threading.Thread(target=send_on, args=(GrpcLink(address), spec), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
