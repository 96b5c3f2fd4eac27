"""A request's payloads as the patches of all its cameras; what they build on is kept by session.

Rules of this file:
 - A payload is a finite tensor of the served shape, a KeyFrameNeeded or a CodecError.
 - What a request refers to is looked up in its own session alone, and opens only with sequence and checksum.
"""

from __future__ import annotations

import numpy as np

from splitvla_cloud.references import ReferenceStore
from splitvla_shared import codec
from splitvla_shared.codec.model import Reference
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.codec.transform import Binding, TransformCodec
from splitvla_shared.errors import CodecError
from splitvla_shared.messages import tensor_from_message
from splitvla_shared.nouns import EncodedTensor, FloatArray, Scheme
from splitvla_shared.spec import ModelSpec
from splitvla_shared.wire import inference_pb2 as pb


class PayloadDecoder:
    """Used by the decoding threads. Mutable state: the reference store, which is thread-safe."""

    def __init__(self, spec: ModelSpec, tables: CodecTables | None, store: ReferenceStore) -> None:
        """tables: of the bundle; None where it is not calibrated."""
        self._shape = (spec.patches, spec.embed_dim)
        self._codec = None if tables is None else TransformCodec(tables)
        self._store = store

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """What is accepted."""
        return (*codec.SCHEMES, *(() if self._codec is None else codec.TRANSFORM_SCHEMES))

    def decode(self, request: pb.InferRequest) -> FloatArray:
        """All cameras' patches, float32 (cameras * patches, embed_dim), in the request's order.

        Raises CodecError, and KeyFrameNeeded when a payload is a difference from a frame that is not here.
        """
        patches: list[FloatArray] = []
        frame: list[Reference] = []
        for index, camera in enumerate(request.cameras):
            tensor = tensor_from_message(camera.tensor, self._shape)
            if self._codec is None or tensor.scheme not in codec.TRANSFORM_SCHEMES:
                patches.append(codec.decode(tensor))
                continue
            reference = self._open(self._codec, tensor, request, index)
            patches.append(self._codec.reconstruct(reference))
            frame.append(reference)
        if frame and len(frame) == len(patches):
            self._store.add(request.session, request.sequence, frame, _oldest_used(request))
        return patches[0] if len(patches) == 1 else np.concatenate(patches)

    def _open(
        self, transform: TransformCodec, tensor: EncodedTensor, request: pb.InferRequest, index: int
    ) -> Reference:
        camera = request.cameras[index]
        named = camera.reference_sequence if camera.HasField("reference_sequence") else None
        if named is not None and named >= request.sequence:
            raise CodecError(
                f"frame {request.sequence} is a difference from frame {named}, which is not an earlier one"
            )
        held = None if named is None else self._store.get(request.session, named, index)
        binding = Binding(request.session, request.sequence, index)
        return transform.decode(tensor.data, tensor.scheme, binding, held, named)


def _oldest_used(request: pb.InferRequest) -> int | None:
    named = [each.reference_sequence for each in request.cameras if each.HasField("reference_sequence")]
    return min(named, default=None)
