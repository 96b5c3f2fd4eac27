"""The codec between EdgePolicy and real servers: loss, restart, replica and drain cost a key frame, never an action."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from splitvla_edge.link.calls import InferCall, Reply, ServerDescription
from splitvla_edge.link.grpc_link import GrpcLink, PendingCall
from splitvla_edge.link.servers import ServerPool
from splitvla_edge.policy import EdgePolicy
from splitvla_shared.codec.model import Reference
from splitvla_shared.codec.transform import Binding, Coded, TransformCodec
from splitvla_shared.errors import CodecError, DeadlineMissed, KeyFrameNeeded, ServerFault
from splitvla_shared.nouns import ActionChunk, FloatArray, Scheme
from tests.codec_rig import RUNGS, SPEC, TABLES, Servers, observation, policy, tokens_of, with_servers
from tests.codec_tables import formula_coefficients

pytestmark = pytest.mark.usefixtures("patient_handshake")

CODEC = TransformCodec(TABLES)
FINE = RUNGS[1]


class Recording:
    """A link that keeps the calls as they were sent, and loses what a test wants lost."""

    def __init__(self, address: str) -> None:
        self._link = GrpcLink(address)
        self.calls: list[InferCall] = []
        self.lose_request = self.lose_reply = False

    @property
    def address(self) -> str:
        return self._link.address

    def describe(self, timeout_s: float) -> ServerDescription:
        return self._link.describe(timeout_s)

    def health(self, timeout_s: float) -> str:
        return self._link.health(timeout_s)

    def infer(self, request: InferCall, deadline_s: float) -> Reply:
        self.calls.append(request)
        if self.lose_request:
            raise DeadlineMissed("the request was lost")
        reply = self._link.infer(request, deadline_s)
        if self.lose_reply:
            raise DeadlineMissed("the reply was lost")
        return reply

    def begin(self, request: InferCall, deadline_s: float) -> PendingCall:
        self.calls.append(request)
        return self._link.begin(request, deadline_s)

    def close(self) -> None:
        self._link.close()

    @property
    def kinds(self) -> str:
        """K for each key frame, d for each difference."""
        letters = {Scheme.KLT: "K", Scheme.KLT_DELTA: "d"}
        return "".join(letters[call.cameras[0].tensor.scheme] for call in self.calls)


def act(robot: EdgePolicy, *values: int, deadline_s: float = 10.0) -> ActionChunk:
    return robot.act(observation(*values), deadline_s=deadline_s, rung=FINE)


def decoded_here(value: int, reference: Reference | None) -> tuple[Reference, FloatArray]:
    """What a server must make of the frame, with no server in between."""
    numbers = CODEC.encode(formula_coefficients(value), 0, Binding(0, 1), reference).reference
    return numbers, CODEC.reconstruct(numbers)


def test_tokens_are_those_of_the_payload_decoded_here_along_a_chain(tmp_path: Path) -> None:
    def scenario(servers: Servers) -> None:
        link = Recording(servers.addresses[0])
        with policy(link) as robot:
            robot.handshake()
            reference: Reference | None = None
            for value in range(12):
                reference, patches = decoded_here(value, reference)
                chunk = act(robot, value)
                assert chunk.tokens == tokens_of(patches)
                assert chunk.wire_bytes == link.calls[-1].wire_bytes
        assert link.kinds == "K" + 11 * "d"

    with_servers(tmp_path, scenario)


def test_two_cameras_build_on_themselves(tmp_path: Path) -> None:
    def scenario(servers: Servers) -> None:
        link = Recording(servers.addresses[0])
        with policy(link) as robot:
            robot.handshake()
            act(robot, 1, 5)
            act(robot, 2, 6)
        assert [camera.tensor.scheme for camera in link.calls[1].cameras] == [Scheme.KLT_DELTA] * 2

    with_servers(tmp_path, scenario)


@pytest.mark.parametrize("lost", ["lose_request", "lose_reply"])
def test_a_frame_that_was_lost_is_never_built_on(tmp_path: Path, lost: str) -> None:
    def scenario(servers: Servers) -> None:
        link = Recording(servers.addresses[0])
        with policy(link) as robot:
            robot.handshake()
            act(robot, 1)
            first, _ = decoded_here(1, None)
            setattr(link, lost, True)
            for value in range(2, 9):  # more than the server remembers
                with pytest.raises(DeadlineMissed):
                    act(robot, value)
            setattr(link, lost, False)
            assert act(robot, 9).tokens == tokens_of(decoded_here(9, first)[1])
        assert {call.cameras[0].reference_sequence for call in link.calls[1:]} == {1}
        assert servers.key_frames_asked_for == [0]

    with_servers(tmp_path, scenario)


def test_a_server_that_started_anew_asks_for_a_key_frame_and_gets_it_within_the_call(tmp_path: Path) -> None:
    def scenario(servers: Servers) -> None:
        link = Recording(servers.addresses[0])
        with policy(link) as robot:
            robot.handshake()
            act(robot, 1)
            servers.restart()
            link.describe(10.0)  # until the channel is connected again
            chunk = act(robot, 2)
            assert chunk.tokens == tokens_of(decoded_here(2, None)[1])
            assert chunk.wire_bytes == sum(call.wire_bytes for call in link.calls[1:])
            act(robot, 3)
        assert link.kinds == "KdKd"
        assert [call.sequence for call in link.calls] == [1, 2, 3, 4], "a sequence never names two payloads"
        assert servers.key_frames_asked_for == [1]

    with_servers(tmp_path, scenario)


def test_a_handshake_forgets_what_the_server_holds(tmp_path: Path) -> None:
    def scenario(servers: Servers) -> None:
        link = Recording(servers.addresses[0])
        with policy(link) as robot:
            for value in (1, 2):
                robot.handshake()
                act(robot, value)
        assert link.kinds == "KK"

    with_servers(tmp_path, scenario)


def test_a_server_that_drains_hands_over_with_one_key_frame(tmp_path: Path) -> None:
    def scenario(servers: Servers) -> None:
        links = [Recording(address) for address in servers.addresses]
        with policy(ServerPool(links, SPEC.fingerprint)) as robot:
            robot.handshake()
            act(robot, 1)
            act(robot, 2)
            servers.drain(0)
            act(robot, 3)
            tokens = [act(robot, value).tokens for value in (4, 5)]
        fourth, patches = decoded_here(4, None)
        assert tokens == [tokens_of(patches), tokens_of(decoded_here(5, fourth)[1])]
        assert [link.kinds for link in links] == ["Kdd", "Kd"]
        assert servers.key_frames_asked_for == [0, 0]

    with_servers(tmp_path, scenario, count=2)


def test_a_replica_that_takes_over_in_the_middle_of_a_call_gets_a_key_frame(tmp_path: Path) -> None:
    def scenario(servers: Servers) -> None:
        links = [Recording(address) for address in servers.addresses]
        with policy(ServerPool(links, SPEC.fingerprint)) as robot:
            robot.handshake()
            act(robot, 1)
            links[0].lose_reply = True
            for value in (2, 3):  # two misses open the breaker; the pool finds out when the next call is made
                with pytest.raises(DeadlineMissed):
                    act(robot, value)
            assert act(robot, 4).tokens == tokens_of(decoded_here(4, None)[1])
        assert [link.kinds for link in links] == ["Kdd", "K"]

    with_servers(tmp_path, scenario, count=2)


def test_two_robots_share_nothing_even_on_one_server_with_one_sequence(tmp_path: Path) -> None:
    def scenario(servers: Servers) -> None:
        with policy(GrpcLink(servers.addresses[0])) as one, policy(GrpcLink(servers.addresses[0])) as two:
            references: dict[EdgePolicy, Reference | None] = {one: None, two: None}
            for robot in references:
                robot.handshake()
            for step in range(4):
                for robot, value in ((one, step), (two, 30 - step)):
                    references[robot], patches = decoded_here(value, references[robot])
                    assert act(robot, value).tokens == tokens_of(patches)
        assert servers.key_frames_asked_for == [0]

    with_servers(tmp_path, scenario)


class Slow:
    """A link that asks for key frames and takes its time; mutable: the clock that the policy reads."""

    address = "slow:1"

    def __init__(self, answers: list[Reply], took_s: float) -> None:
        self.answers, self.took_s, self.now = answers, took_s, 0.0
        self.calls: list[InferCall] = []

    def describe(self, timeout_s: float) -> ServerDescription:
        return ServerDescription(SPEC, tuple(Scheme))

    def infer(self, request: InferCall, deadline_s: float) -> Reply:
        self.calls.append(request)
        self.now += self.took_s
        return dataclasses.replace(self.answers.pop(0), sequence=request.sequence, server=self.address)

    def close(self) -> None: ...


GOOD = Reply(0, tokens=(31800,) * 7)
REFUSED = Reply(0, key_frame_needed=True)


def test_without_time_to_send_it_again_the_next_frame_is_the_key_frame() -> None:
    link = Slow([GOOD, REFUSED, GOOD], took_s=0.06)
    robot = policy(link)
    robot._clock = lambda: link.now
    robot.handshake()
    act(robot, 1, deadline_s=0.1)
    with pytest.raises(KeyFrameNeeded, match=r"frame 2: slow:1 does not hold .* 40 of 100 ms left"):
        act(robot, 2, deadline_s=0.1)
    act(robot, 3, deadline_s=0.1)
    assert [call.cameras[0].reference_sequence for call in link.calls] == [None, 1, None]


def test_a_key_frame_that_is_answered_with_the_wish_for_one_ends_the_call() -> None:
    link = Slow([GOOD, REFUSED, REFUSED], took_s=0.001)
    robot = policy(link)
    robot._clock = lambda: link.now
    robot.handshake()
    act(robot, 1)
    with pytest.raises(KeyFrameNeeded, match="in answer to one"):
        act(robot, 2)


def test_a_frame_unlike_any_that_was_calibrated_with_goes_as_int8(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = Slow([GOOD], took_s=0.01)
    robot = policy(link)
    robot.handshake()
    monkeypatch.setattr(robot.embed._encoder, "coefficients", lambda image: formula_coefficients() * 1e9)
    act(robot, 1)
    assert (link.calls[0].cameras[0].tensor.scheme, robot.sent_as) == (Scheme.INT8, "int8")


def test_a_key_frame_that_the_tables_can_not_say_goes_as_int8_though_the_difference_went(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = Slow([GOOD, REFUSED, GOOD], took_s=0.001)
    robot = policy(link)
    robot._clock = lambda: link.now
    robot.handshake()
    act(robot, 1)
    assert robot._payloads._codec is not None
    encode = robot._payloads._codec.encode

    def of_differences_alone(
        coefficients: FloatArray, rung: int, binding: Binding, reference: Reference | None = None
    ) -> Coded:
        if reference is None:
            raise CodecError("the frame is unlike those that were calibrated with")
        return encode(coefficients, rung, binding, reference)

    monkeypatch.setattr(robot._payloads._codec, "encode", of_differences_alone)
    assert robot.sent_as == "fine"
    chunk = act(robot, 2)
    assert robot.sent_as == "int8"
    sent = [(call.sequence, call.cameras[0].tensor.scheme) for call in link.calls]
    assert sent == [(1, Scheme.KLT), (2, Scheme.KLT_DELTA), (3, Scheme.INT8)]
    assert chunk.wire_bytes == sum(call.wire_bytes for call in link.calls[1:])


def test_a_server_that_wants_a_key_frame_without_reason_is_faulty() -> None:
    from splitvla_edge.link.grpc_link import _read_reply
    from splitvla_shared.wire import inference_pb2 as pb

    call = InferCall(SPEC.fingerprint, 1, 7, "robot", "pick", (), 7)
    wish = pb.InferReply(sequence=7, key_frame_needed=True)
    with pytest.raises(ServerFault, match="in answer to one"):
        _read_reply(wish, call, "a:1")
    difference = dataclasses.replace(call, key_frame=lambda: call)
    assert _read_reply(wish, difference, "a:1") == Reply(7, key_frame_needed=True, server="a:1")
    with pytest.raises(ServerFault, match="beside an action"):
        _read_reply(pb.InferReply(sequence=7, key_frame_needed=True, tokens=pb.ActionTokens()), difference, "a:1")
