"""encoder.onnx again with smaller weights: stored as float16, or as 8-bit integers that are multiplied as such.

Rules of this file: the float32 graph says what is computed and the source tensors say with which numbers; one weight is
in memory at a time. The 8-bit nodes are those of onnxruntime.quantization.quantize_dynamic (per channel, QInt8, MatMul
with constants only), whose own writer holds the model several times over: 9 GB for openvla-7b's towers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from splitvla_cloud.split.tensor_file import StoredTensor
from splitvla_shared.errors import CheckpointError

_INLINE_LIMIT_BYTES = 500_000_000  # as of encoder.onnx
_LARGEST_FLOAT16 = 65504.0
_INT8_STEPS = 127  # symmetric: -128 is left out
_ALIGN = 4096  # of a tensor in the data file: a memory page, so that it can be mapped
_BIAS, _WEIGHT = ".bias", ".weight"

Advance = Callable[[int], None]


def write_float16(
    source: Path,
    tensors: Mapping[str, StoredTensor],
    target: Path,
    advance: Advance,
    inline_limit_bytes: int = _INLINE_LIMIT_BYTES,
) -> None:
    """Write `target`: the weights of the linear layers stored as float16, cast to float32 where they are used.

    `advance` is told the stored bytes of each weight. Raises CheckpointError when a weight overflows float16.
    """

    def replacement(node: Any, name: str, store: _Store) -> Iterator[Any]:
        weight = _matrix(tensors[name])
        if float(np.abs(weight).max()) > _LARGEST_FLOAT16:
            raise CheckpointError(f"{tensors[name].file}: {name} is too large for float16; leave fp16 out of --encoder")
        stored = store.add(f"{name}.half", weight.astype(np.float16))
        yield helper.make_node("Cast", [stored], [f"{name}.single"], to=TensorProto.FLOAT)
        yield helper.make_node("MatMul", [node.input[0], f"{name}.single"], list(node.output))
        advance(tensors[name].size)

    _rewrite(source, tensors, target, replacement, outside=2 * _linear_elements(tensors) > inline_limit_bytes)


def write_int8(
    source: Path,
    tensors: Mapping[str, StoredTensor],
    target: Path,
    advance: Advance,
    inline_limit_bytes: int = _INLINE_LIMIT_BYTES,
) -> None:
    """Write `target`: each linear weight as int8 with one scale an output channel; inputs are quantised as they come.

    tensors: those that `source` was made of, or the same rescaled; gains and biases are taken from them too.
    `advance` is told the stored bytes of each weight.
    """
    seen: set[str] = set()

    def replacement(node: Any, name: str, store: _Store) -> Iterator[Any]:
        codes, scales = _quantised(_matrix(tensors[name]))
        data, out = node.input[0], node.output[0]
        if data not in seen:
            seen.add(data)
            parts = [f"{data}.codes", f"{data}.scale", f"{data}.zero"]
            yield helper.make_node("DynamicQuantizeLinear", [data], parts)
        stored = [store.add(f"{name}.codes", codes), store.add(f"{name}.zero", np.zeros(codes.shape[1], np.int8))]
        scale = store.add(f"{name}.scale", scales)
        integers = [f"{data}.codes", stored[0], f"{data}.zero", stored[1]]
        yield helper.make_node("MatMulInteger", integers, [f"{out}.integer"])
        yield helper.make_node("Cast", [f"{out}.integer"], [f"{out}.single"], to=TensorProto.FLOAT)
        yield helper.make_node("Mul", [f"{data}.scale", scale], [f"{out}.scale"])
        yield helper.make_node("Mul", [f"{out}.single", f"{out}.scale"], [out])
        advance(tensors[name].size)

    _rewrite(source, tensors, target, replacement, outside=_linear_elements(tensors) > inline_limit_bytes)


@dataclass(slots=True)
class _Store:
    """Tensors of the graph that is being written; large ones go to `stream`, where there is one, as they come."""

    initializers: list[Any]
    stream: BinaryIO | None
    location: str

    def add(self, name: str, array: npt.NDArray[Any]) -> str:
        if self.stream is None or array.nbytes < _ALIGN:
            self.initializers.append(numpy_helper.from_array(array, name))
            return name
        self.stream.write(b"\0" * (-self.stream.tell() % _ALIGN))
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=dtype, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.location), ("offset", self.stream.tell()), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.stream.write(np.ascontiguousarray(array).data)
        self.initializers.append(tensor)
        return name


def _rewrite(
    source: Path,
    tensors: Mapping[str, StoredTensor],
    target: Path,
    replacement: Callable[[Any, str, _Store], Iterator[Any]],
    outside: bool,
) -> None:
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    linears = _linears(graph)
    weights = {node.input[1] for node in graph.node if node.output[0] in linears}
    with contextlib.ExitStack() as stack:
        file = target.with_name(target.name + ".data")
        store = _Store([], stack.enter_context(file.open("wb")) if outside else None, file.name)
        for initializer in graph.initializer:
            if initializer.name in weights:
                continue
            if initializer.name in tensors:
                store.add(initializer.name, tensors[initializer.name].read().float().numpy())
            else:
                store.add(initializer.name, numpy_helper.to_array(initializer, str(source.parent)))
        nodes: list[Any] = []
        for node in graph.node:
            name = linears.get(node.output[0])
            nodes += [node] if name is None else replacement(node, name, store)
    for kept, new in ((graph.initializer, store.initializers), (graph.node, nodes)):
        del kept[:]
        kept.extend(new)
    del graph.value_info[:]
    onnx.save(model, target)


def _linears(graph: Any) -> dict[str, str]:
    """Output of every MatMul with a constant, and the torch name of its weight, which the bias behind it tells."""
    constants = {initializer.name for initializer in graph.initializer}
    readers = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    found = {}
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in constants:
            continue
        adder = readers.get(node.output[0])
        biases = [name for name in (adder.input if adder else ()) if name.endswith(_BIAS)]
        if len(biases) != 1:
            raise CheckpointError(
                f"the exporter changed: MatMul {node.name} has no bias; report this with the versions"
            )
        found[node.output[0]] = biases[0].removesuffix(_BIAS) + _WEIGHT
    return found


def _linear_elements(tensors: Mapping[str, StoredTensor]) -> int:
    return sum(int(np.prod(entry.shape)) for entry in tensors.values() if len(entry.shape) == 2)


def _matrix(entry: StoredTensor) -> npt.NDArray[np.float32]:
    """A torch weight (out, in) as the graph holds it, (in, out)."""
    matrix: npt.NDArray[np.float32] = entry.read().float().t().contiguous().numpy()
    return matrix


def _quantised(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    largest = np.abs(weight).max(axis=0)
    scales = np.where(largest > 0, largest / _INT8_STEPS, 1).astype(np.float32)
    codes = np.clip(np.rint(weight / scales), -_INT8_STEPS, _INT8_STEPS).astype(np.int8)
    return codes, scales
