"""An encoder's ONNX graph cut in two before the projector's last layer, without the `onnx` package.

Rules of this file: it knows the few fields of onnx.proto that it reads or writes (numbers from
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, which never change); protobuf carries all others along unread.
Weights that lie beside the graph are not touched: both parts name the same file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import FloatArray

IMAGE, PATCHES, FEATURES, COEFFICIENTS = "image", "patches", "features", "coefficients"
_FLOAT, _EXTERNAL = 1, 1  # TensorProto.DataType, TensorProto.DataLocation
_SCHEMA: dict[str, tuple[tuple[str, int, str], ...]] = {
    "Entry": (("key", 1, "string"), ("value", 2, "string")),
    "Tensor": (
        ("dims", 1, "int64*"),
        ("data_type", 2, "int32"),
        ("name", 8, "string"),
        ("raw_data", 9, "bytes"),
        ("external_data", 13, "Entry*"),
        ("data_location", 14, "int32"),
    ),
    "Dimension": (("dim_value", 1, "int64"),),
    "Shape": (("dim", 1, "Dimension*"),),
    "TensorType": (("elem_type", 1, "int32"), ("shape", 2, "Shape")),
    "Type": (("tensor_type", 1, "TensorType"),),
    "ValueInfo": (("name", 1, "string"), ("type", 2, "Type")),
    "Node": (("input", 1, "string*"), ("output", 2, "string*"), ("op_type", 4, "string")),
    "Graph": (
        ("node", 1, "Node*"),
        ("initializer", 5, "Tensor*"),
        ("input", 11, "ValueInfo*"),
        ("output", 12, "ValueInfo*"),
        ("value_info", 13, "ValueInfo*"),
    ),
    "Model": (("graph", 7, "Graph"),),
}
_KINDS = {"string": 9, "bytes": 12, "int64": 3, "int32": 5}  # FieldDescriptorProto.Type; 11 is a message


def _message_class(name: str) -> Any:
    """A class for `name` of the schema, in a pool of its own: the onnx package may be loaded in the same process."""
    file = descriptor_pb2.FileDescriptorProto(name="onnx_part.proto", package="onnx_part", syntax="proto2")
    for kind, fields in _SCHEMA.items():
        message = file.message_type.add(name=kind)
        for field, number, written in fields:
            base = written.removesuffix("*")
            added: Any = message.field.add(name=field, number=number)
            added.label = 3 if written.endswith("*") else 1
            added.type = _KINDS.get(base, 11)
            if base in _SCHEMA:
                added.type_name = f".onnx_part.{base}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"onnx_part.{name}"))


_Model = _message_class("Model")


@dataclass(frozen=True, slots=True, eq=False)
class CutGraph:
    """Two models that one after the other do what the whole one did.

    trunk: "image" to "features", which are what the projector's last layer reads. head: "features" to "patches".
    """

    trunk: bytes
    head: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """x @ weight + bias; weight: float32 (in, out), bias: float32 (out,)."""

    weight: FloatArray
    bias: FloatArray

    def folded(self, mean: FloatArray, analysis: FloatArray) -> Linear:
        """The layer that gives (y - mean) @ analysis where this one gives y. analysis: float32 (out, columns)."""
        wide = analysis.astype(np.float64)
        bias = (self.bias.astype(np.float64) - mean) @ wide
        return Linear(np.asarray(self.weight @ analysis, np.float32), np.asarray(bias, np.float32))


def cut(path: Path, patches: int, width: int) -> CutGraph:
    """Cut a graph behind its last Gelu, the projector's. width: of what the last layer reads.

    Raises BundleError when the file is no ONNX graph, or has no such place.
    """
    model = _read(path)
    features = _features(path, model.graph)
    trunk, head = _Model(), model
    trunk.CopyFrom(model)
    _keep(trunk.graph, _ancestors(path, model.graph, features))
    _keep(head.graph, _ancestors(path, model.graph, PATCHES, stop=features))
    _rename(trunk.graph, features)
    _rename(head.graph, features)
    _declare(trunk.graph.output, FEATURES, (1, patches, width))
    _declare(head.graph.input, FEATURES, (1, patches, width))
    return CutGraph(trunk.SerializeToString(), head.SerializeToString())


def last_linear(path: Path) -> Linear:
    """The projector's last layer of the float32 encoder. Raises BundleError when the graph's end is another one."""
    graph = _read(path).graph
    nodes = _ancestors(path, graph, PATCHES, stop=_features(path, graph))
    names = {name for index in nodes for name in graph.node[index].input}
    constants = [tensor for tensor in graph.initializer if tensor.name in names]
    weights = [_values(path, tensor) for tensor in constants if len(tensor.dims) == 2]
    biases = [_values(path, tensor) for tensor in constants if len(tensor.dims) == 1]
    kinds = [graph.node[index].op_type for index in sorted(nodes)]
    if kinds != ["MatMul", "Add"] or len(weights) != 1 or len(biases) != 1:
        raise BundleError(f"{path}: the projector ends in {', '.join(kinds)}, not in one layer; split again")
    return Linear(weights[0], biases[0])


def linear_graph(like: bytes, layer: Linear, patches: int) -> bytes:
    """A model "features" to "coefficients" of one layer, of the same versions as the model `like`."""
    model = _Model()
    model.ParseFromString(like)
    graph = model.graph
    width, columns = layer.weight.shape
    _keep(graph, set())
    for name, values in (("codec.weight", layer.weight), ("codec.bias", layer.bias)):
        raw = np.ascontiguousarray(values, "<f4").tobytes()
        graph.initializer.add(name=name, data_type=_FLOAT, dims=values.shape, raw_data=raw)
    graph.node.add(op_type="MatMul", input=[FEATURES, "codec.weight"], output=["codec.product"])
    graph.node.add(op_type="Add", input=["codec.product", "codec.bias"], output=[COEFFICIENTS])
    _declare(graph.input, FEATURES, (1, patches, width))
    _declare(graph.output, COEFFICIENTS, (1, patches, columns))
    return bytes(model.SerializeToString())


def _read(path: Path) -> Any:
    model = _Model()
    try:
        model.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise BundleError(f"{path} can't be read as a graph: {error}; copy it again or split again") from error
    return model


def _features(path: Path, graph: Any) -> str:
    gelus = [node.output[0] for node in graph.node if node.op_type == "Gelu"]
    if not gelus:
        raise BundleError(f"{path} has no Gelu before the projector's last layer; split again with this version")
    return str(gelus[-1])


def _ancestors(path: Path, graph: Any, name: str, stop: str = "") -> set[int]:
    """Indices of the nodes that `name` is made by, without those behind `stop`."""
    makers = {output: index for index, node in enumerate(graph.node) for output in node.output}
    found: set[int] = set()
    open_names = [name]
    while open_names:
        wanted = open_names.pop()
        if wanted == IMAGE and stop:
            raise BundleError(f"{path}: the projector reads more than its last Gelu; split again with this version")
        if wanted == stop or wanted not in makers or makers[wanted] in found:
            continue
        found.add(makers[wanted])
        open_names += graph.node[makers[wanted]].input
    return found


def _keep(graph: Any, nodes: set[int]) -> None:
    """Keep these nodes, the constants that they read and the inputs and outputs that are theirs."""
    kept = [node for index, node in enumerate(graph.node) if index in nodes]
    read = {name for node in kept for name in node.input}
    made = {name for node in kept for name in node.output}
    _only(graph.node, lambda node: not made.isdisjoint(node.output))
    _only(graph.initializer, lambda tensor: tensor.name in read)
    _only(graph.input, lambda value: value.name in read)
    _only(graph.output, lambda value: value.name in made)
    del graph.value_info[:]


def _only(field: Any, wanted: Any) -> None:
    for index in reversed(range(len(field))):
        if not wanted(field[index]):
            del field[index]


def _rename(graph: Any, features: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == features:
                    names[index] = FEATURES


def _declare(field: Any, name: str, shape: tuple[int, ...]) -> None:
    value = field.add(name=name)
    value.type.tensor_type.elem_type = _FLOAT
    for size in shape:
        value.type.tensor_type.shape.dim.add(dim_value=size)


def _values(path: Path, tensor: Any) -> FloatArray:
    """A float32 constant, from the graph or from the file beside it."""
    shape, count = tuple(tensor.dims), math.prod(tensor.dims)
    outside = {entry.key: entry.value for entry in tensor.external_data}
    try:
        if tensor.data_location == _EXTERNAL:
            file = path.with_name(Path(outside["location"]).name)
            values = np.fromfile(file, "<f4", count, offset=int(outside.get("offset", "0")))
        else:
            values = np.frombuffer(tensor.raw_data, "<f4")
        if tensor.data_type != _FLOAT:
            raise ValueError(f"it is of ONNX type {tensor.data_type}")
        return np.asarray(values.reshape(shape), np.float32)
    except (OSError, KeyError, ValueError) as error:
        raise BundleError(f"{path}: {tensor.name} can't be read: {error}; copy it again or split again") from error
