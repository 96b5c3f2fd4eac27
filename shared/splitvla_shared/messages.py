"""ModelSpec and tensors to and from their protobuf messages, so that protobuf stops at this line."""

from __future__ import annotations

import dataclasses

from splitvla_shared.errors import BundleError, CodecError, ServerFault
from splitvla_shared.nouns import EncodedTensor, Scheme
from splitvla_shared.spec import ModelSpec, Resize
from splitvla_shared.wire import inference_pb2 as pb

_SPEC_FIELDS = tuple(field.name for field in dataclasses.fields(ModelSpec))


def spec_to_message(spec: ModelSpec) -> pb.ModelSpec:
    return pb.ModelSpec(**{name: getattr(spec, name) for name in _SPEC_FIELDS})


def spec_from_message(message: pb.ModelSpec) -> ModelSpec:
    """Raises ServerFault when the server describes a model that can't exist."""
    values = {name: getattr(message, name) for name in _SPEC_FIELDS}
    try:
        values["resize"] = Resize(message.resize)
    except ValueError:
        raise ServerFault(f"the server describes resize {message.resize}, unknown here; update splitvla") from None
    try:
        return ModelSpec(**values)
    except BundleError as error:
        raise ServerFault(f"the server describes a model that can't exist: {error}") from error


def tensor_to_message(tensor: EncodedTensor) -> pb.EncodedTensor:
    return pb.EncodedTensor(scheme=tensor.scheme.name, data=tensor.data)


def tensor_from_message(message: pb.EncodedTensor, shape: tuple[int, int]) -> EncodedTensor:
    """`shape` is the session's, from the ModelSpec. Raises CodecError on an unknown scheme."""
    try:
        scheme = Scheme(message.scheme)
    except ValueError:
        raise CodecError(f"payload scheme {message.scheme} is unknown; known: {[s.name for s in Scheme]}") from None
    return EncodedTensor(scheme, shape, message.data)
