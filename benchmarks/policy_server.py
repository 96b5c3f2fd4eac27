"""What a robot's own program pays for asking `serve-policy` instead of calling `EdgePolicy.act` itself.

One server, and on the robot's side three ways in turn, frame by frame: the call in this process, OpenVLA's `POST /act`
and openpi's websocket, each of the two to a policy server in a process of its own. Clients keep their connections and
send whole camera frames, as theirs do. The model is small, so that what the ways add is seen. Needs the extras
`policy-server` and `bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import json_numpy
import requests
from websockets.sync.client import connect

from benchmarks import report
from benchmarks.frames import INSTRUCTION, read_frames
from benchmarks.processes import ModuleProcess, ServerProcess
from benchmarks.tiny_checkpoint import write_tiny_checkpoint
from splitvla_cloud.split import split
from splitvla_edge import EdgePolicy
from splitvla_edge.policy_server.numpy_msgpack import pack, unpack
from splitvla_shared.nouns import Image, Observation

KEY = "widowx_tiny"
_WARM_UP = 10
_DEADLINE_S = 10.0
Act = Callable[[Image], object]


def direct(stack: contextlib.ExitStack, edge: Path, server: str) -> Act:
    """`EdgePolicy.act` in this process."""
    policy = stack.enter_context(EdgePolicy.connect(edge, server, unnorm_key=KEY, threads=1))
    return lambda image: policy.act(Observation(0, (image,), INSTRUCTION, time.monotonic()), deadline_s=_DEADLINE_S)


def openvla(stack: contextlib.ExitStack, address: str) -> Act:
    """`POST /act` with json_numpy, as OpenVLA's clients do it, on a connection that is kept."""
    session = stack.enter_context(requests.Session())
    session.trust_env = False  # no proxy

    def act(image: Image) -> object:
        body = json_numpy.dumps({"image": image, "instruction": INSTRUCTION, "unnorm_key": KEY})
        headers = {"Content-Type": "application/json"}
        answer = session.post(f"http://{address}/act", data=body.encode(), headers=headers, timeout=_DEADLINE_S)
        action = json_numpy.loads(answer.text)
        if isinstance(action, str):
            raise RuntimeError(f"{address}/act answered {action!r}: {answer.headers.get('X-SplitVLA-Reason')}")
        return action

    return act


def openpi(stack: contextlib.ExitStack, address: str) -> Act:
    """openpi's websocket with msgpack, as its client does it."""
    websocket = stack.enter_context(connect(f"ws://{address}", compression=None, proxy=None, max_size=None))
    websocket.recv()  # the metadata

    def act(image: Image) -> object:
        websocket.send(pack({"observation/image": image, "prompt": INSTRUCTION}))
        reply = websocket.recv()
        if isinstance(reply, str):
            raise RuntimeError(f"ws://{address} answered {reply!r}")
        return unpack(reply)["actions"]

    return act


def measure(frames: int, seed: int) -> str:
    """The Markdown table."""
    images = read_frames()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        write_tiny_checkpoint(folder / "checkpoint", seed=seed)
        split(folder / "checkpoint", folder / "bundles")
        edge = folder / "bundles" / "edge"
        server = stack.enter_context(ServerProcess(folder / "bundles" / "cloud")).wait_ready()
        times = ("--deadline-ms", f"{_DEADLINE_S * 1e3:g}", "--threads", "1")
        options = ("--bundle", str(edge), "--server", server, "--unnorm-key", KEY, *times)
        asked = [
            stack.enter_context(ModuleProcess("splitvla_edge", "serve-policy", *options, "--listen", "127.0.0.1:0"))
            for _ in range(2)
        ]
        ways = {
            "`EdgePolicy.act` in the program": direct(stack, edge, server),
            "`POST /act`": openvla(stack, asked[0].wait_ready()),
            "openpi's websocket": openpi(stack, asked[1].wait_ready()),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for step in range(frames + _WARM_UP):
            image = images[step % len(images)]
            for way, act in ways.items():
                began = time.perf_counter()
                act(image)
                if step >= _WARM_UP:
                    taken[way].append((time.perf_counter() - began) * 1e3)
    own = next(iter(taken.values()))
    rows = []
    for way, times_ms in taken.items():
        p50, p99, _ = report.percentiles(times_ms)
        added = report.percentiles([each - direct_ms for each, direct_ms in zip(times_ms, own, strict=True)])[0]
        rows.append([way, f"{p50:.2f}", f"{p99:.2f}", "" if times_ms is own else f"{added:.2f}"])
    height, width, _ = images[0].shape
    title = report.heading(
        f"The policy server: what asking it adds to a call, frames of {width} x {height}",
        f"python -m benchmarks.policy_server --frames {frames}",
        packages=("grpcio", "onnxruntime", "torch", "uvicorn", "websockets"),
        seed=seed,
        n=frames,
    )
    header = ("the program asks by", "p50 ms", "p99", "added, median of the frame-by-frame differences")
    return title + "\n" + report.table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(measure(arguments.frames, arguments.seed))


if __name__ == "__main__":
    main()
