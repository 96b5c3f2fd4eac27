"""Specs and tensors as protobuf messages: there and back, and what a strange peer may send."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from splitvla_shared.codec import SCHEMES, decode, encode
from splitvla_shared.errors import CodecError, ServerFault
from splitvla_shared.messages import spec_from_message, spec_to_message, tensor_from_message, tensor_to_message
from splitvla_shared.nouns import Scheme
from splitvla_shared.spec import ModelSpec, Resize
from splitvla_shared.wire import inference_pb2 as pb

SHAPE = (4, 70)


def spec(resize: Resize = Resize.NAIVE) -> ModelSpec:
    return ModelSpec(
        "tiny", "a", "b", "c", "d", 256, 96, 224, resize, 32000, 256, 7, 1, "do {instruction}", 29871, 1
    ).sealed()


def test_the_message_has_every_field_of_the_spec() -> None:
    assert set(pb.ModelSpec.DESCRIPTOR.fields_by_name) == {field.name for field in dataclasses.fields(ModelSpec)}


@pytest.mark.parametrize("resize", Resize)
def test_a_spec_survives_the_wire(resize: Resize) -> None:
    data = spec_to_message(spec(resize)).SerializeToString()
    assert spec_from_message(pb.ModelSpec.FromString(data)) == spec(resize)


@pytest.mark.parametrize("resize", [0, 9])
def test_an_unknown_resize_is_the_server_s_fault(resize: int) -> None:
    message = spec_to_message(spec())
    message.resize = resize  # type: ignore[assignment]
    with pytest.raises(ServerFault, match=f"resize {resize}"):
        spec_from_message(message)


def test_a_model_that_can_t_exist_is_the_server_s_fault() -> None:
    with pytest.raises(ServerFault, match="patches is 0"):
        spec_from_message(pb.ModelSpec(resize=pb.NAIVE, prompt_template="{instruction}"))
    message = spec_to_message(spec())
    message.embed_dim = 2**32 - 1
    with pytest.raises(ServerFault, match="embed_dim is 4294967295"):
        spec_from_message(message)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_tensor_survives_the_wire(scheme: Scheme) -> None:
    tensor = encode(np.linspace(-1, 1, 280, dtype=np.float32).reshape(SHAPE), scheme)
    received = tensor_from_message(pb.EncodedTensor.FromString(tensor_to_message(tensor).SerializeToString()), SHAPE)
    assert received == tensor
    np.testing.assert_array_equal(decode(received), decode(tensor))


@pytest.mark.parametrize("scheme", [0, 6, 16, 22, -1])
def test_an_unknown_scheme_is_a_codec_error(scheme: int) -> None:
    """proto3 enums are open: any 32-bit number can arrive."""
    with pytest.raises(CodecError, match=f"scheme {scheme} is unknown"):
        tensor_from_message(pb.EncodedTensor(scheme=scheme, data=b""), SHAPE)  # type: ignore[arg-type]


def test_an_absent_payload_is_a_codec_error() -> None:
    with pytest.raises(CodecError):
        tensor_from_message(pb.CameraEmbedding().tensor, SHAPE)
    with pytest.raises(CodecError, match="0 bytes"):
        decode(tensor_from_message(pb.EncodedTensor(scheme=pb.INT8), SHAPE))
