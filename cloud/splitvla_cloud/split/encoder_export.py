"""The robot's half as one ONNX graph: uint8 image in, projected patch embeddings out."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from torch import Tensor, nn

from splitvla_cloud.split.geometry import VisionGeometry
from splitvla_cloud.split.progress import Progress, counter, silent, ticking
from splitvla_cloud.split.tensor_file import StoredTensor, tensor_bytes
from splitvla_cloud.split.vit import EdgeModel

# The newest operator set that ONNX Runtime 1.18 runs (robots keep old builds), and the first with Gelu as one node.
OPSET = 20
INPUT, OUTPUT = "image", "patches"
# Above this the weights lie beside the graph, in encoder.onnx.data: protobuf ends at 2 GiB, and building one message
# of all weights takes three more copies of them in memory.
_INLINE_LIMIT_BYTES = 500_000_000
_FLOAT32_BYTES = 4
_ALIGN = 4096  # of a tensor in the data file: a memory page, so that it can be mapped


def load_edge_model(vision: VisionGeometry, tensors: Mapping[str, StoredTensor]) -> EdgeModel:
    """The encoder in float32 with the checkpoint's weights, read one at a time into the model itself."""
    with torch.device("meta"):
        model = EdgeModel(vision)
    model.load_state_dict({name: entry.read().float() for name, entry in tensors.items()}, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def export_encoder(
    vision: VisionGeometry,
    tensors: Mapping[str, StoredTensor],
    path: Path,
    inline_limit_bytes: int = _INLINE_LIMIT_BYTES,
    report: Progress = silent,
) -> None:
    """Write `path`: input "image" uint8 (1, S, S, 3), output "patches" float32 (1, patches, embed_dim).

    Weights of more than `inline_limit_bytes` go to a second file, the name with ".data" behind it, one at a time: the
    graph is traced without them, and the exporter, which keeps several copies of what it is given, never sees them.
    """
    if sum(_float32_size(entry) for entry in tensors.values()) <= inline_limit_bytes:
        with ticking(report, "encoder graph"):
            _trace(load_edge_model(vision, tensors), vision).save(path, external_data=False)
        return
    with ticking(report, "encoder graph"):
        model, outside = _without_large_weights(vision, tensors)
        program = _trace(model, vision)
    advance = counter(report, "encoder weights", sum(_float32_size(entry) for entry in outside.values()))
    _write_outside(program.model.graph, outside, path.with_name(path.name + ".data"), advance)
    onnx_ir.save(program.model, path)  # the program's own save would write the data once more


class _TransposedLinear(nn.Module):
    """x W^T + b with W^T as the parameter: the graph then holds each weight as it is, under its own name.

    An ordinary Linear's weight would be transposed while the graph is made, which takes its numbers.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight) + self.bias


def _without_large_weights(
    vision: VisionGeometry, tensors: Mapping[str, StoredTensor]
) -> tuple[nn.Module, dict[str, StoredTensor]]:
    """The model with zeros for the weights of its linear layers, and those weights. All others are small and real.

    numpy's zeros, because they take no memory until somebody writes to them.
    """
    with torch.device("meta"):
        model = EdgeModel(vision)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    outside = {f"{name}.weight": tensors[f"{name}.weight"] for name in linears}
    state = {name: entry.read().float() for name, entry in tensors.items() if name not in outside}
    for name, entry in outside.items():
        parent, _, child = name.removesuffix(".weight").rpartition(".")
        zeros = torch.from_numpy(np.zeros(entry.shape[::-1], dtype=np.float32))
        bias = state[name.removesuffix("weight") + "bias"]
        setattr(model.get_submodule(parent), child, _TransposedLinear(zeros, bias))
        state[name] = zeros
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False), outside


def _trace(model: nn.Module, vision: VisionGeometry) -> Any:
    image = torch.zeros((1, vision.image_size, vision.image_size, 3), dtype=torch.uint8)
    with quiet_exporter(), torch.no_grad():
        return torch.onnx.export(
            model,
            (image,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )


def _write_outside(graph: Any, outside: Mapping[str, StoredTensor], path: Path, advance: Callable[[int], None]) -> None:
    """Write the transposed weights to `path`, and make the graph's initializers point there."""
    with path.open("wb") as stream:
        for name, entry in outside.items():
            # A weight that is absent was computed with, so the graph holds what its zeros gave: never write that.
            initializer = graph.initializers[name]
            stream.write(b"\0" * (-stream.tell() % _ALIGN))
            start = stream.tell()
            weight = entry.read().float().t().contiguous()
            stream.write(tensor_bytes(weight))
            initializer.const_value = onnx_ir.ExternalTensor(
                path.name,
                start,
                weight.nbytes,
                onnx_ir.DataType.FLOAT,
                shape=onnx_ir.Shape(weight.shape),
                name=name,
                base_dir=path.parent,
            )
            advance(weight.nbytes)


def _float32_size(entry: StoredTensor) -> int:
    return math.prod(entry.shape) * _FLOAT32_BYTES


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
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
