"""The robot's half as one ONNX graph: uint8 image in, projected patch embeddings out."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from splitvla_cloud.split.geometry import VisionGeometry
from splitvla_cloud.split.tensor_file import TensorEntry
from splitvla_cloud.split.vit import EdgeModel

# The newest operator set that ONNX Runtime 1.18 runs (robots keep old builds), and the first with Gelu as one node.
OPSET = 20
INPUT, OUTPUT = "image", "patches"
# Above this the weights lie beside the graph, in encoder.onnx.data: protobuf ends at 2 GiB, and building one message
# of all weights takes three more copies of them in memory.
_INLINE_LIMIT_BYTES = 500_000_000


def load_edge_model(vision: VisionGeometry, tensors: Mapping[str, TensorEntry]) -> EdgeModel:
    """The encoder in float32 with the checkpoint's weights, read one at a time into the model itself."""
    with torch.device("meta"):
        model = EdgeModel(vision)
    model.load_state_dict({name: entry.read().float() for name, entry in tensors.items()}, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def export_encoder(
    vision: VisionGeometry,
    tensors: Mapping[str, TensorEntry],
    path: Path,
    inline_limit_bytes: int = _INLINE_LIMIT_BYTES,
) -> None:
    """Write `path`: input "image" uint8 (1, S, S, 3), output "patches" float32 (1, patches, embed_dim).

    Weights of more than `inline_limit_bytes` go to a second file, the name with ".data" behind it.
    """
    model = load_edge_model(vision, tensors)
    image = torch.zeros((1, vision.image_size, vision.image_size, 3), dtype=torch.uint8)
    size = sum(parameter.nbytes for parameter in model.parameters())
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (image,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=size > inline_limit_bytes)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter narrates, and complains that torchvision is absent; none of it is for the user of `split`."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
