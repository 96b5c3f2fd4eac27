"""`splitvla-edge serve-policy` as its clients meet it: real sockets, OpenVLA's own client, openpi's protocol."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import json_numpy
import numpy as np
import pytest
import requests
from starlette.requests import Request
from websockets.exceptions import InvalidStatus

from benchmarks.processes import ServerProcess
from splitvla_edge import EdgePolicy
from splitvla_edge.policy_server.app import MAX_CONNECTIONS, REASON_HEADER, _read_body
from splitvla_edge.policy_server.numpy_msgpack import pack, unpack
from splitvla_edge.policy_server.request import MAX_MESSAGE_BYTES
from splitvla_shared.bundle import open_bundle
from splitvla_shared.errors import ObservationError
from splitvla_shared.nouns import Observation, Scheme
from splitvla_shared.wire import inference_pb2 as pb
from tests.fake_server import FakeServicer, description, serving
from tests.policy_clients import CALL, IMAGE, KEY, PATIENCE_S, PolicyServer, answer, ask, post, websocket_to

CLIENTS = (Path(__file__).resolve().parent.parent / "docs" / "clients.md").read_text(encoding="utf-8")
# The client of OpenVLA's README, word for word but for the address and where the frame comes from.
OPENVLAS_CLIENT = """
import requests
import json_numpy
json_numpy.patch()
import numpy as np

action = requests.post(
    "http://{address}/act",
    json={{"image": np.load({frame!r}), "instruction": {instruction!r}, "unnorm_key": {key!r}}}
).json()
assert action.dtype == np.float64 and action.shape == (7,), action
print(*(value.hex() for value in action.tolist()))
"""


@pytest.fixture(scope="module")
def servicer(tiny_bundles: Path) -> FakeServicer:
    return FakeServicer(described=description(open_bundle(tiny_bundles / "edge", "edge").spec))


@pytest.fixture(scope="module")
def running(tiny_bundles: Path, servicer: FakeServicer) -> Iterator[PolicyServer]:
    with (
        serving(servicer) as server,
        PolicyServer(tiny_bundles, server, "--deadline-ms", "20000", "--scheme", "f32") as process,
    ):
        process.wait_ready()
        yield process


@pytest.fixture
def address(running: PolicyServer, servicer: FakeServicer) -> str:
    servicer.infer = answer
    return running.wait_ready()


def _client(address: str, frame: Path, instruction: str, key: str) -> list[float]:
    text = OPENVLAS_CLIENT.format(address=address, frame=str(frame), instruction=instruction, key=key)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return [float.fromhex(value) for value in done.stdout.split()]


# --- the same action --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_server(reference_bundles: Path) -> Iterator[tuple[str, str]]:
    """The GPU host's address and the policy server's, with the reference's checkpoint behind them."""
    with ServerProcess(reference_bundles / "cloud") as cloud:
        server = cloud.wait_ready()
        # Random weights also answer ids that are no actions, which the reference clips.
        options = ("--scheme", "f32", "--deadline-ms", "20000", "--accept-clipped")
        with PolicyServer(reference_bundles, server, *options, key="tiny_bridge_orig") as process:
            yield server, process.wait_ready()


def test_openvlas_client_gets_the_references_action_and_edge_policys(
    golden_server: tuple[str, str], reference_checkpoint: Path, reference_bundles: Path, tmp_path: Path
) -> None:
    server, address = golden_server
    golden = np.load(reference_checkpoint / "golden.npz")
    frame, instruction = golden[f"image/{golden['image_names'][0]}"], str(golden["instructions"][0])
    np.save(tmp_path / "frame.npy", frame)
    action = _client(address, tmp_path / "frame.npy", instruction, "tiny_bridge_orig")
    np.testing.assert_allclose(action, golden["fp32/tiny_bridge_orig/actions"][0, 0], rtol=0, atol=1e-9)
    with EdgePolicy.connect(
        reference_bundles / "edge", server, unnorm_key="tiny_bridge_orig", scheme=Scheme.F32, threads=1
    ) as policy:
        chunk = policy.act(Observation(0, (frame,), instruction, time.monotonic()), deadline_s=10.0)
    assert list(chunk.tokens) == golden["fp32/tiny_bridge_orig/tokens"][0, 0].tolist()
    assert action == chunk.actions[0].tolist()


def test_all_golden_actions_come_through_both_protocols(
    golden_server: tuple[str, str], reference_checkpoint: Path
) -> None:
    address = golden_server[1]
    golden = np.load(reference_checkpoint / "golden.npz")
    actions = golden["fp32/tiny_bridge_orig/actions"]
    with websocket_to(address) as websocket:
        websocket.recv()
        for i, name in enumerate(golden["image_names"]):
            frame, instruction = golden[f"image/{name}"], str(golden["instructions"][0])
            reply = post(address, {"image": frame, "instruction": instruction, "unnorm_key": "tiny_bridge_orig"})
            np.testing.assert_allclose(json_numpy.loads(reply.text), actions[i, 0], rtol=0, atol=1e-9)
            websocket.send(pack({"observation/image": frame, "prompt": instruction}))
            data = websocket.recv()
            assert isinstance(data, bytes)
            np.testing.assert_array_equal(unpack(data)["actions"], [json_numpy.loads(reply.text)])


# --- POST /act --------------------------------------------------------------------------------------------------------


def test_openvlas_client_as_its_readme_has_it_gets_seven_numbers(address: str, tmp_path: Path) -> None:
    np.save(tmp_path / "frame.npy", IMAGE)
    assert len(_client(address, tmp_path / "frame.npy", "lift the pot", KEY)) == 7


def test_a_request_that_is_encoded_twice_is_answered_so(address: str) -> None:
    plain = post(address, CALL)
    double = post(address, {"encoded": json_numpy.dumps(CALL)})
    assert isinstance(double.json(), str)
    np.testing.assert_array_equal(json_numpy.loads(double.json()), json_numpy.loads(plain.text))
    assert b" " not in plain.content


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unnorm_key": "bridge_orig"}, "'bridge_orig' is not the one that is served, 'widowx_tiny'"),
        ({"image": IMAGE.astype(np.float32)}, "dtype '<f4'"),
        ({"image": [1, 2, 3]}, "`image` is a list"),
        ({"image": None}, "`image` is missing"),
        ({"instruction": ""}, "instruction is empty"),
        ({"instruction": "x" * 600}, "600 characters"),
    ],
)
def test_what_no_model_could_take_is_openvlas_error_with_the_reason_in_a_header(
    address: str, servicer: FakeServicer, changes: dict[str, Any], reason: str
) -> None:
    before = len(servicer.requests)
    reply = post(address, CALL | changes)
    assert (reply.status_code, reply.content) == (200, b'"error"')
    assert reason in reply.headers[REASON_HEADER]
    assert len(servicer.requests) == before


def test_a_body_that_is_no_json_object_has_status_422(address: str) -> None:
    for body in (b"[1]", b"no json", b""):
        reply = post(address, body)
        assert reply.status_code == 422
        assert reply.json()["detail"][0]["loc"] == ["body"]
    assert post(address, CALL, **{"Content-Type": "text/plain"}).status_code == 422


def test_the_other_routes_answer_as_the_references_do(address: str) -> None:
    with requests.Session() as session:
        session.trust_env = False
        statuses = {
            path: session.get(f"http://{address}{path}", timeout=5).status_code for path in ("/", "/act", "/healthz")
        }
    assert statuses == {"/": 404, "/act": 405, "/healthz": 200}


def test_a_body_over_the_limit_is_an_error_before_it_is_read(address: str) -> None:
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
    connection.putrequest("POST", "/act")
    connection.putheader("Content-Length", str(MAX_MESSAGE_BYTES + 1))
    connection.endheaders()
    reply = connection.getresponse()
    assert reply.read() == b'"error"'
    assert "scale the picture down" in (reply.getheader(REASON_HEADER) or "")
    connection.close()


def test_a_body_that_does_not_say_how_long_it_is_is_read_to_the_limit_and_no_further() -> None:
    part, read = 1 << 20, 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += part
        return {"type": "http.request", "body": bytes(part), "more_body": read < 2 * MAX_MESSAGE_BYTES}

    with pytest.raises(ObservationError, match="scale the picture down"):
        asyncio.run(_read_body(Request({"type": "http", "method": "POST", "headers": []}, receive)))
    assert read == MAX_MESSAGE_BYTES + part


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "splitvla-cloud serve"),
        (grpc.StatusCode.OUT_OF_RANGE, "action-only"),
        (grpc.StatusCode.INTERNAL, "INTERNAL: as told"),
    ],
)
def test_a_server_that_gives_no_action_is_an_error_and_never_an_action(
    address: str, servicer: FakeServicer, status: grpc.StatusCode, reason: str
) -> None:
    servicer.infer = lambda _, context: context.abort(status, "as told")
    reply = post(address, CALL)
    assert (reply.status_code, reply.content) == (200, b'"error"')
    assert reason in reply.headers[REASON_HEADER]
    servicer.infer = answer
    assert post(address, CALL).content != b'"error"'


def test_tokens_that_are_no_actions_are_an_error(address: str, servicer: FakeServicer) -> None:
    def clipped(request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:
        reply = answer(request, context)
        reply.tokens.ids[2] = 5
        return reply

    servicer.infer = clipped
    reply = post(address, CALL)
    assert reply.content == b'"error"'
    assert "5 in place 2" in reply.headers[REASON_HEADER]


SNIPPETS = dict(zip(("openvla", "openpi"), re.findall(r"^```python\n(.*?)^```", CLIENTS, re.M | re.S), strict=True))


@pytest.mark.parametrize(("dtype", "holds"), [("uint8", False), ("int32", True)])
@pytest.mark.parametrize("name", list(SNIPPETS))
def test_the_clients_of_the_docs_print_an_action_or_that_they_hold(
    address: str, name: str, dtype: str, holds: bool
) -> None:
    if name == "openpi":
        pytest.importorskip("openpi_client.websocket_client_policy", reason="openpi-client is not installed")
    port = address.partition(":")[2]
    text = SNIPPETS[name].replace("8000", port).replace("bridge_orig", KEY).replace("uint8", dtype)
    text = text.replace("timeout=2,", f"timeout={PATIENCE_S},")
    options = ("-W", "ignore", "-c", text)  # how that client uses newer websockets
    done = subprocess.run([sys.executable, *options], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert ("hold:" in done.stdout) == holds
    assert ("]" in done.stdout) == (not holds)


# --- openpi's websocket -----------------------------------------------------------------------------------------------


def test_a_websocket_begins_with_metadata_and_gives_chunks(address: str) -> None:
    with websocket_to(address) as websocket:
        first = websocket.recv()
        assert isinstance(first, bytes)
        metadata = unpack(first)
        assert (metadata["unnorm_key"], metadata["action_dims"], metadata["chunk_length"]) == (KEY, 7, 1)
        replies = [ask(websocket, image=IMAGE, prompt="lift the pot") for _ in range(2)]
    expected = json_numpy.loads(post(address, CALL).text)
    for reply in replies:
        np.testing.assert_array_equal(reply["actions"], expected[None])
    assert set(replies[0]["server_timing"]) == {"infer_ms"}
    assert set(replies[1]["server_timing"]) == {"infer_ms", "prev_total_ms"}


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")  # how that client uses newer websockets
def test_openpis_own_client_gets_actions(address: str) -> None:
    client = pytest.importorskip("openpi_client.websocket_client_policy", reason="openpi-client is not installed")
    host, port = address.split(":")
    policy = client.WebsocketClientPolicy(host, int(port))
    assert policy.get_server_metadata()["unnorm_key"] == KEY
    reply = policy.infer({"observation/exterior_image_1_left": IMAGE, "prompt": "go", "observation/state": np.ones(8)})
    assert reply["actions"].shape == (1, 7)
    with pytest.raises(RuntimeError, match="no picture under a known name"):
        policy.infer({"prompt": "go"})
    assert policy.infer({"image": IMAGE, "prompt": "go"})["actions"].shape == (1, 7)
    policy._ws.close()


def test_an_error_is_a_text_and_the_connection_stays_open(address: str, servicer: FakeServicer) -> None:
    with websocket_to(address) as websocket:
        websocket.recv()
        websocket.send("text")
        assert "a text frame came" in str(websocket.recv())
        websocket.send(b"\xc1")
        assert "not msgpack" in str(websocket.recv())
        assert "--cameras" in ask(websocket, prompt="go")
        servicer.infer = lambda _, context: context.abort(grpc.StatusCode.INTERNAL, "as told")
        assert "as told" in ask(websocket, image=IMAGE, prompt="go")
        servicer.infer = answer
        assert ask(websocket, image=IMAGE, prompt="go")["actions"].shape == (1, 7)


def test_messages_that_were_sent_ahead_are_answered_in_their_order(address: str) -> None:
    with websocket_to(address) as websocket:
        websocket.recv()
        websocket.send(pack({"image": IMAGE, "prompt": "go"}))
        websocket.send("text")
        websocket.send(pack({"image": IMAGE, "prompt": "go"}))
        kinds = [type(websocket.recv(timeout=PATIENCE_S)) for _ in range(3)]
    assert kinds == [bytes, str, bytes]


def test_more_websockets_than_there_is_room_for_are_refused(address: str) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(websocket_to(address)).recv()  # the server has it now
        with pytest.raises(InvalidStatus, match="503"):
            stack.enter_context(websocket_to(address))


# --- who may ask ------------------------------------------------------------------------------------------------------


def test_a_web_page_is_refused_in_both_protocols(address: str, servicer: FakeServicer) -> None:
    before = len(servicer.requests)
    assert post(address, CALL, Origin="http://localhost:3000").status_code == 403
    assert post(address, CALL, Origin="null").status_code == 403
    with pytest.raises(InvalidStatus, match="403"), websocket_to(address, origin="http://evil.example"):
        pass
    assert len(servicer.requests) == before


def test_two_clients_at_once_both_get_their_actions_one_after_another(address: str, servicer: FakeServicer) -> None:
    inside, first, overlap = threading.Lock(), threading.Event(), threading.Event()

    def alone(request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:
        if not inside.acquire(blocking=False):
            overlap.set()
            return answer(request, context)
        try:
            if not first.is_set():  # while this one lasts, the other client's would come
                first.set()
                overlap.wait(1.0)
            return answer(request, context)
        finally:
            inside.release()

    servicer.infer = alone
    with ThreadPoolExecutor(2) as clients, websocket_to(address) as websocket:
        websocket.recv()
        posts = clients.submit(lambda: [post(address, CALL).content for _ in range(5)])
        sends = clients.submit(lambda: [ask(websocket, image=IMAGE, prompt="go")["actions"] for _ in range(5)])
        assert b'"error"' not in posts.result()
        assert len(sends.result()) == 5
    assert not overlap.is_set()
