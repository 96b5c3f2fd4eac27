"""A policy server in a process of its own, what answers it, and clients of both its protocols."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import json_numpy
import numpy as np
import requests
from websockets.sync.client import ClientConnection, connect

from benchmarks.processes import ModuleProcess
from splitvla_edge.policy_server.numpy_msgpack import pack, unpack
from splitvla_shared.wire import inference_pb2 as pb

KEY = "widowx_tiny"
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
CALL = {"image": IMAGE, "instruction": "lift the pot", "unnorm_key": KEY}
PATIENCE_S = 120.0  # as in daemons.py


def answer(request: pb.InferRequest, _: grpc.ServicerContext) -> pb.InferReply:
    """One action token of the tiny model's vocabulary a dimension."""
    tokens = pb.ActionTokens(ids=range(900, 900 + request.action_dims))
    return pb.InferReply(sequence=request.sequence, tokens=tokens)


class PolicyServer(ModuleProcess):
    """`splitvla-edge serve-policy` in a process of its own."""

    def __init__(self, bundles: Path, server: str, *options: str, key: str = KEY) -> None:
        arguments = ["--bundle", str(bundles / "edge"), "--server", server, "--unnorm-key", key]
        super().__init__(
            "splitvla_edge", "serve-policy", *arguments, "--listen", "127.0.0.1:0", "--threads", "1", *options
        )

    def wait_said(self, text: str) -> None:
        """Until the operator could read that."""
        self._wait_for(re.compile(re.escape(text)), PATIENCE_S)


def post(address: str, body: Any, **headers: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False  # no proxy
        data = body if isinstance(body, bytes) else json_numpy.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | headers
        return session.post(f"http://{address}/act", data=data, headers=headers, timeout=PATIENCE_S)


@contextlib.contextmanager
def websocket_to(address: str, origin: str | None = None) -> Iterator[ClientConnection]:
    given = None if origin is None else {"Origin": origin}
    with connect(f"ws://{address}", compression=None, proxy=None, additional_headers=given) as websocket:
        yield websocket


def ask(websocket: ClientConnection, **message: Any) -> Any:
    websocket.send(pack(message))
    reply = websocket.recv(timeout=PATIENCE_S)
    return unpack(reply) if isinstance(reply, bytes) else reply
