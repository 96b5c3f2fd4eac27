"""EdgePolicy: what is sent, what comes back as an action, and what each thing that goes wrong is called."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from splitvla_edge import EdgePolicy
from splitvla_edge.link.calls import Reply, ServerDescription, ServerStages
from splitvla_edge.link.grpc_link import GrpcLink
from splitvla_edge.model import EdgeModel
from splitvla_shared.actions import parse_statistics
from splitvla_shared.bundle import open_bundle
from splitvla_shared.codec import decode, encoded_size
from splitvla_shared.errors import (
    BundleError,
    ConfigError,
    DeadlineMissed,
    EarlyStop,
    ObservationError,
    ServerFault,
    SpecMismatch,
    Unreachable,
)
from splitvla_shared.nouns import Observation, Scheme
from splitvla_shared.rungs import Rung
from splitvla_shared.spec import ModelSpec
from splitvla_shared.wire import inference_pb2 as pb
from tests.edge_fakes import MIDDLE, STATISTICS, Clock, FakeEncoder, FakeLink
from tests.fake_server import SPEC, FakeServicer, answer, description, serving


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def encoder(clock: Clock) -> FakeEncoder:
    return FakeEncoder(clock)


@pytest.fixture
def link(clock: Clock) -> FakeLink:
    return FakeLink(clock)


def _policy(clock: Clock, encoder: FakeEncoder, link: FakeLink, key: str = "arm", **options: Any) -> EdgePolicy:
    model = EdgeModel(SPEC, parse_statistics(STATISTICS)[key])
    return EdgePolicy(model, encoder, link, clock=clock, **options)


@pytest.fixture
def policy(clock: Clock, encoder: FakeEncoder, link: FakeLink) -> EdgePolicy:
    policy = _policy(clock, encoder, link)
    policy.handshake()
    return policy


def _observation(*values: int, step: int = 5, **changes: Any) -> Observation:
    images = tuple(np.full((6, 9, 3), value, np.uint8) for value in values or (90,))
    return dataclasses.replace(Observation(step, images, "lift the pot", 99.0), **changes)


# --- the frame's way --------------------------------------------------------------------------------------------------


def test_an_observation_becomes_an_action_in_the_robots_units(policy: EdgePolicy, link: FakeLink) -> None:
    link.outcome = Reply(1, tokens=(MIDDLE, 31999, 31744, MIDDLE, MIDDLE, MIDDLE, 31744))
    chunk = policy.act(_observation())
    assert (chunk.first_step, chunk.source, chunk.clipped) == (5, "cloud", ())
    assert chunk.actions.dtype == np.float64
    edge = 1 - 1 / 255
    expected = [[1.0, 1 - 3 * edge, 1 + 3 * edge, 1.0, 1.0, 1.0, edge]]  # the gripper's mask leaves it normalised
    np.testing.assert_allclose(chunk.actions, expected, rtol=0, atol=1e-12)
    assert chunk.tokens == link.outcome.tokens


def test_tokens_outside_the_bins_are_marked_by_their_index(policy: EdgePolicy, link: FakeLink) -> None:
    link.outcome = Reply(1, tokens=(MIDDLE, 2, MIDDLE, 32000, 31744, 31743, MIDDLE))
    assert policy.act(_observation()).clipped == (1, 3, 5)


def test_an_action_that_is_no_number_is_a_fault_and_names_the_statistics(
    clock: Clock, encoder: FakeEncoder, link: FakeLink
) -> None:
    widest = parse_statistics({"huge": {"action": {"q01": [-1.7e308] * 7, "q99": [1.7e308] * 7}}})["huge"]
    policy = EdgePolicy(EdgeModel(SPEC, widest), encoder, link, clock=clock)
    policy.handshake()
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(ServerFault, match=r"not finite .*'huge'"):
        policy.act(_observation())


def test_the_call_carries_the_square_images_embeddings_in_camera_order(
    policy: EdgePolicy, encoder: FakeEncoder, link: FakeLink
) -> None:
    chunk = policy.act(_observation(10, 20, state=np.array([0.5], np.float32)), rung=Rung("f32", Scheme.F32, 0))
    (call,) = link.calls
    assert [image.shape for image in encoder.images] == [(8, 8, 3)] * 2
    assert [float(decode(camera.tensor).mean()) for camera in call.cameras] == [10.0, 20.0]
    assert {camera.tensor.scheme for camera in call.cameras} == {Scheme.F32}
    assert (call.fingerprint, call.instruction, call.robot) == (SPEC.fingerprint, "lift the pot", "robot")
    assert (call.action_dims, call.chunk_length) == (7, 1)
    assert call.state is not None
    assert chunk.wire_bytes == call.wire_bytes >= 2 * encoded_size(Scheme.F32, (SPEC.patches, SPEC.embed_dim))


def test_every_stage_is_timed_and_the_network_is_the_round_trip_less_the_server(
    policy: EdgePolicy, link: FakeLink
) -> None:
    stages = policy.act(_observation(1, 2)).stages
    assert stages.encode_ms == pytest.approx(80)
    assert stages.network_ms == pytest.approx(50 - 20)
    assert (stages.decode_payload_ms, stages.queue_ms, stages.prefill_ms, stages.decode_ms) == (1, 2, 3, 4)
    assert stages.total_ms == pytest.approx(130)
    link.outcome = Reply(2, tokens=(MIDDLE,) * 7, stages=ServerStages(total_ms=1e9))
    assert policy.act(_observation()).stages.network_ms == 0.0, "a server's clock can't make our network negative"


def test_sequence_numbers_rise_by_one_whatever_becomes_of_a_call(policy: EdgePolicy, link: FakeLink) -> None:
    policy.act(_observation())
    link.outcome = EarlyStop("the model stopped")
    with pytest.raises(EarlyStop):
        policy.act(_observation())
    link.outcome = Reply(3, tokens=(MIDDLE,) * 7)
    policy.act(_observation())
    assert [call.sequence for call in link.calls] == [1, 2, 3]
    assert len({call.session for call in link.calls}) == 1


def test_two_policies_are_two_sessions(clock: Clock, encoder: FakeEncoder, link: FakeLink) -> None:
    for _ in range(2):
        policy = _policy(clock, encoder, link)
        policy.handshake()
        policy.act(_observation())
    assert link.calls[0].session != link.calls[1].session


def test_a_continuous_chunk_is_unnormalised_without_tokens(clock: Clock, encoder: FakeEncoder, link: FakeLink) -> None:
    spec = dataclasses.replace(SPEC, chunk_length=2).sealed()
    model = EdgeModel(spec, parse_statistics(STATISTICS)["hand"])
    link.server = ServerDescription(spec, tuple(Scheme))
    link.outcome = Reply(1, chunk=np.array([[-1, 0], [0, 1]], np.float32))
    policy = EdgePolicy(model, encoder, link, clock=clock)
    policy.handshake()
    chunk = policy.act(_observation())
    np.testing.assert_array_equal(chunk.actions, [[0.0, 0.5], [0.5, 1.0]])
    assert (chunk.tokens, chunk.clipped) == ((), ())


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_the_deadline_runs_from_the_start_of_act(policy: EdgePolicy, link: FakeLink) -> None:
    policy.act(_observation(), deadline_s=0.15)
    assert link.deadlines == [pytest.approx(0.15 - 0.04)]


@pytest.mark.parametrize("deadline_s", [0.04, 0.01, 0.0, -1.0, float("nan")])
def test_nothing_is_sent_when_encoding_used_the_deadline_up(
    policy: EdgePolicy, link: FakeLink, deadline_s: float
) -> None:
    with pytest.raises(DeadlineMissed, match="frame 1: not sent, encoding took 40 ms"):
        policy.act(_observation(), deadline_s=deadline_s)
    assert link.calls == []


def test_a_miss_carries_the_numbers_of_the_whole_frame(policy: EdgePolicy, link: FakeLink) -> None:
    link.outcome = DeadlineMissed("late")
    with pytest.raises(DeadlineMissed) as caught:
        policy.act(_observation(), deadline_s=0.15, rung=policy.rungs[-1])
    size = link.calls[0].wire_bytes
    assert str(caught.value) == f"frame 1: no answer in 150 ms (int4, {size:,} B), sent after 40 ms"


def test_what_the_server_says_of_a_miss_is_kept(policy: EdgePolicy, link: FakeLink) -> None:
    link.outcome = said = DeadlineMissed("frame 1: 40 ms were left, the backbone takes 90 ms; it never reached the GPU")
    said.by_server = True
    with pytest.raises(DeadlineMissed) as caught:
        policy.act(_observation(), deadline_s=0.15)
    assert caught.value is said


# --- observations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": ()}, "0 camera images"),
        ({"images": (np.zeros((8, 8, 3), np.uint8),) * 3}, "3 camera images; this model takes 1..2"),
        ({"images": (np.zeros((8, 8, 3), np.float32),)}, "float32"),
        ({"instruction": "  "}, "empty"),
        ({"instruction": "x" * 513}, "513"),
        ({"instruction": "a\nb"}, "control"),
        ({"state": np.array([np.nan], np.float32)}, "finite"),
        ({"state": np.zeros(65, np.float32)}, "64"),
        ({"state": np.zeros((2, 2), np.float32)}, "shape"),
        ({"state": [1.0, 2.0]}, "state is list; expected an array"),
        ({"state": np.array(["1.0"])}, "state is <U3"),
        ({"instruction": b"pick"}, "the instruction is bytes; expected text"),
    ],
)
def test_an_observation_that_no_model_takes_is_refused_before_any_work(
    policy: EdgePolicy, encoder: FakeEncoder, link: FakeLink, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ObservationError, match=reason):
        policy.act(_observation(**changes))
    assert encoder.images == []
    assert link.calls == []


# --- the handshake ----------------------------------------------------------------------------------------------------


def _other(**changes: Any) -> ModelSpec:
    return dataclasses.replace(SPEC, **changes).sealed()


def test_another_model_is_named_by_the_field_that_differs(policy: EdgePolicy, link: FakeLink) -> None:
    link.server = ServerDescription(_other(language_sha256="zz"), tuple(Scheme))
    with pytest.raises(SpecMismatch, match=r"language_sha256: 'b{64}' here, 'zz' there") as caught:
        policy.handshake()
    assert "fingerprint" not in str(caught.value)
    assert "split" in str(caught.value), "the remedy"


def test_a_long_list_of_differences_stays_one_readable_line(policy: EdgePolicy, link: FakeLink) -> None:
    other = _other(
        vision_sha256="n" * 5000, statistics_sha256="4", language_sha256="2", tokenizer_sha256="3", max_cameras=1
    )
    link.server = ServerDescription(other, tuple(Scheme))
    with pytest.raises(SpecMismatch, match="2 more") as caught:
        policy.handshake()
    assert len(str(caught.value)) < 1000


def test_a_fingerprint_that_contradicts_equal_fields_is_a_mismatch_too(policy: EdgePolicy, link: FakeLink) -> None:
    link.server = ServerDescription(dataclasses.replace(SPEC, fingerprint="f"), tuple(Scheme))
    with pytest.raises(SpecMismatch, match="fingerprint"):
        policy.handshake()


def test_a_server_that_changed_its_model_is_met_again_after_a_new_handshake(
    policy: EdgePolicy, encoder: FakeEncoder, link: FakeLink
) -> None:
    """FAILED_PRECONDITION, then a handshake that fails by name, then the right server again."""
    link.outcome = SpecMismatch("frame 1: FAILED_PRECONDITION")
    with pytest.raises(SpecMismatch):
        policy.act(_observation())
    link.server = ServerDescription(_other(tokenizer_sha256="new"), tuple(Scheme))
    with pytest.raises(SpecMismatch, match="tokenizer_sha256"):
        policy.handshake()
    with pytest.raises(SpecMismatch, match="handshake"):
        policy.act(_observation())
    assert len(encoder.images) == 1, "without an agreed model nothing is encoded"
    link.server, link.outcome = ServerDescription(SPEC, tuple(Scheme)), Reply(3, tokens=(MIDDLE,) * 7)
    policy.handshake()
    assert policy.act(_observation()).tokens == (MIDDLE,) * 7


def test_no_action_before_the_first_handshake(clock: Clock, encoder: FakeEncoder, link: FakeLink) -> None:
    with pytest.raises(SpecMismatch, match="handshake"):
        _policy(clock, encoder, link).act(_observation())


def test_a_scheme_the_server_refuses_is_a_configuration_error(
    clock: Clock, encoder: FakeEncoder, link: FakeLink
) -> None:
    link.server = ServerDescription(SPEC, (Scheme.F32, Scheme.INT8))
    with pytest.raises(ConfigError, match="bf16; it accepts f32, int8"):
        _policy(clock, encoder, link).handshake()
    policy = _policy(clock, encoder, link, scheme=Scheme.INT8)
    policy.handshake()
    with pytest.raises(ConfigError, match="int4"):
        policy.act(_observation(), rung=policy.rungs[-1])


def test_a_draining_server_is_not_a_server_to_start_with(policy: EdgePolicy, link: FakeLink) -> None:
    link.server = dataclasses.replace(link.server, draining=True)
    with pytest.raises(Unreachable, match="draining"):
        policy.handshake()


@pytest.mark.parametrize("robot", ["x" * 65, "arm\n1", "arm\udcff"])
def test_a_robot_name_that_does_not_fit_a_log_is_refused(
    clock: Clock, encoder: FakeEncoder, link: FakeLink, robot: str
) -> None:
    with pytest.raises(ConfigError, match="robot name"):
        _policy(clock, encoder, link, robot=robot)


def test_leaving_the_context_closes_the_link(policy: EdgePolicy, link: FakeLink) -> None:
    with policy:
        assert not link.closed
    assert link.closed
    with pytest.raises(SpecMismatch):
        policy.act(_observation())


def test_statistics_longer_than_the_spec_allows_are_a_bundle_error(
    clock: Clock, encoder: FakeEncoder, link: FakeLink
) -> None:
    model = EdgeModel(_other(max_action_dims=6), parse_statistics(STATISTICS)["arm"])
    with pytest.raises(BundleError, match="7 dimensions"):
        EdgePolicy(model, encoder, link)


# --- over a real channel ----------------------------------------------------------------------------------------------


def test_the_policy_works_over_a_real_channel(clock: Clock, encoder: FakeEncoder) -> None:
    servicer = FakeServicer()
    with serving(servicer) as address, GrpcLink(address) as link:
        model = EdgeModel(SPEC, parse_statistics(STATISTICS)["hand"])
        with EdgePolicy(model, encoder, link, scheme=Scheme.INT8) as policy:
            policy.handshake()
            assert policy.act(_observation(), deadline_s=5.0).tokens == (31900, 31901)
            servicer.infer = lambda _, context: context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another model")
            with pytest.raises(SpecMismatch, match=r"frame 2: .*another model"):
                policy.act(_observation(), deadline_s=5.0)
            servicer.described = description(_other(tokenizer_sha256="other"))
            with pytest.raises(SpecMismatch, match=r"tokenizer_sha256: 'c{64}' here, 'other' there"):
                policy.handshake()


def test_connect_opens_a_real_bundle_and_acts(tiny_bundles: Path) -> None:
    servicer = FakeServicer(described=description(open_bundle(tiny_bundles / "edge", "edge").spec))
    with (
        serving(servicer) as address,
        EdgePolicy.connect(tiny_bundles / "edge", address, unnorm_key="widowx_tiny", threads=1) as policy,
    ):
        chunk = policy.act(_observation(200), deadline_s=10.0)
    assert chunk.actions.shape == (1, 7)
    assert chunk.stages.encode_ms > 0
    (request,) = servicer.requests
    assert request.cameras[0].tensor.scheme == pb.BF16
    assert chunk.wire_bytes == len(request.cameras[0].tensor.data)


def test_connect_refuses_a_server_of_another_model_and_closes_its_link(
    tiny_bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[GrpcLink] = []
    close = GrpcLink.close

    def closing(link: GrpcLink) -> None:
        closed.append(link)
        close(link)

    monkeypatch.setattr(GrpcLink, "close", closing)
    with serving(FakeServicer(answer)) as address, pytest.raises(SpecMismatch, match=r"here, .* there"):
        EdgePolicy.connect(tiny_bundles / "edge", address, unnorm_key="widowx_tiny", threads=1)
    assert len(closed) == 1


def test_connect_names_the_half_that_is_needed(tiny_bundles: Path) -> None:
    with pytest.raises(BundleError, match="edge half is needed"):
        EdgePolicy.connect(tiny_bundles / "cloud", "127.0.0.1:1")


def test_the_last_answer_is_the_next_frames_draft_until_a_new_handshake(policy: EdgePolicy, link: FakeLink) -> None:
    first = (MIDDLE, 31999, 31744, MIDDLE, MIDDLE, MIDDLE, 31744)
    link.outcome = Reply(1, tokens=first)
    policy.act(_observation())
    link.outcome = DeadlineMissed("late")
    with pytest.raises(DeadlineMissed):
        policy.act(_observation())
    link.outcome = Reply(3, tokens=first)
    policy.act(_observation())
    policy.handshake()
    policy.act(_observation())
    assert [call.draft_tokens for call in link.calls] == [(), first, first, ()]


def test_tokens_that_are_no_actions_are_never_a_draft(policy: EdgePolicy, link: FakeLink) -> None:
    """A reply that a bit was flipped in: the server refuses drafts outside its vocabulary, frame after frame."""
    link.outcome = Reply(1, tokens=(MIDDLE, 1 << 20, MIDDLE, MIDDLE, MIDDLE, MIDDLE, MIDDLE))
    assert policy.act(_observation()).clipped == (1,)
    policy.act(_observation())
    assert [call.draft_tokens for call in link.calls] == [(), ()]
