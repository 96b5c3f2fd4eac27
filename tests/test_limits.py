"""Bounds that both machines hold to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from splitvla_shared.codec import SCHEMES, encode
from splitvla_shared.errors import ObservationError
from splitvla_shared.limits import (
    MAX_INSTRUCTION_CHARS,
    MAX_ROBOT_NAME_CHARS,
    MAX_STATE_DIMS,
    check_instruction,
    max_message_bytes,
)
from splitvla_shared.messages import tensor_to_message
from splitvla_shared.nouns import Scheme
from splitvla_shared.spec import ModelSpec, Resize
from splitvla_shared.wire import inference_pb2 as pb

SPEC = ModelSpec(
    "x", "a", "b", "c", "d", 256, 96, 224, Resize.NAIVE, 32000, 256, 7, 1, "{instruction}", 29871, 2
).sealed()


@pytest.mark.parametrize(
    "instruction", ["pick up the cup", " x ", "hebe die Tasse — 杯子", "x" * MAX_INSTRUCTION_CHARS]
)
def test_an_ordinary_instruction_passes_unchanged(instruction: str) -> None:
    assert check_instruction(instruction) == instruction


@pytest.mark.parametrize(
    ("instruction", "match"),
    [
        ("", "empty"),
        (" \t ", "empty"),
        ("x" * (MAX_INSTRUCTION_CHARS + 1), "513 characters, at most 512"),
        ("pick\nup", "control characters"),
        ("pick\x00up", "control characters"),
        ("pick\x7fup", "control characters"),
        ("pick \udcff up", "not valid UTF-8"),
    ],
)
def test_an_instruction_that_no_model_could_take_is_refused(instruction: str, match: str) -> None:
    with pytest.raises(ObservationError, match=match):
        check_instruction(instruction)


def largest_request(spec: ModelSpec, scheme: Scheme) -> pb.InferRequest:
    """Every field at its limit, and elements that zstd can't shorten."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, (spec.patches, spec.embed_dim), dtype=np.uint32)
    noise = ((bits & 0x807FFFFF) | 0x3F800000).view(np.float32)
    tensor = tensor_to_message(encode(noise, scheme))
    return pb.InferRequest(
        fingerprint=spec.fingerprint,
        session=2**64 - 1,
        sequence=2**64 - 1,
        robot="杯" * MAX_ROBOT_NAME_CHARS,
        instruction="\U0001f916" * MAX_INSTRUCTION_CHARS,
        cameras=[
            pb.CameraEmbedding(camera="杯" * MAX_ROBOT_NAME_CHARS, tensor=tensor, reference_sequence=2**64 - 1)
            for _ in range(spec.max_cameras)
        ],
        state=[1.0] * MAX_STATE_DIMS,
        action_dims=spec.max_action_dims,
        draft_tokens=[2**32 - 1] * spec.max_action_dims * spec.chunk_length,
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("spec", [SPEC, dataclasses.replace(SPEC, max_action_dims=64, chunk_length=256, max_cameras=8)])
def test_the_largest_legal_request_fits_the_message_bound(spec: ModelSpec, scheme: Scheme) -> None:
    assert largest_request(spec, scheme).ByteSize() <= max_message_bytes(spec)


def test_the_message_bound_is_tight() -> None:
    """A bound far above the largest request would let a stranger make the server allocate for nothing."""
    assert max_message_bytes(SPEC) - largest_request(SPEC, Scheme.F32).ByteSize() < 16 * 1024
