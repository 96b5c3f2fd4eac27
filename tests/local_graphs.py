"""ONNX files of local policies for tests: right by default, and wrong where a test says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from splitvla_shared.spec import ModelSpec

INSTRUCTIONS = ("pick", "place")


def metadata(spec: ModelSpec, **changes: str | None) -> dict[str, str]:
    """As a good file has it; a change to None leaves the entry out."""
    good = {
        "local": "1",
        "actions": "normalized",
        "instructions": json.dumps(INSTRUCTIONS),
        "fingerprint": spec.fingerprint,
    }
    return {f"splitvla.{name}": value for name, value in {**good, **changes}.items() if value is not None}


def write_local_policy(
    path: Path,
    spec: ModelSpec,
    answers: Sequence[Sequence[float]] = ((0.5,) * 7, (-0.5,) * 7),
    *,
    kind: str = "patches",
    instruction: str | None = "instruction",
    output: str = "actions",
    said: Mapping[str, str] | None = None,
    shape: Sequence[int | str] | None = None,
) -> Path:
    """Answers with the row of `answers` that its instruction names, plus the mean of its picture or patches."""
    shapes = {"patches": [1, spec.patches, spec.embed_dim], "image": [1, 6, 8, 3]}
    source_type = TensorProto.UINT8 if kind == "image" else TensorProto.FLOAT
    table = np.asarray(answers, np.float32)[:, np.newaxis, :]
    nodes = [
        helper.make_node("Cast", [kind], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["mean"], keepdims=0),
        helper.make_node("Gather", ["table", instruction or "first"], ["rows"], axis=0),
        helper.make_node("Add", ["rows", "mean"], [output]),
    ]
    inputs = [helper.make_tensor_value_info(kind, source_type, shape or shapes.get(kind, [1]))]
    if instruction is not None:
        inputs.append(helper.make_tensor_value_info(instruction, TensorProto.INT64, [1]))
    graph = helper.make_graph(
        nodes,
        "local",
        inputs,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 1, table.shape[2]])],
        [
            helper.make_tensor("table", TensorProto.FLOAT, table.shape, table.ravel()),
            helper.make_tensor("first", TensorProto.INT64, [1], [0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, metadata(spec) if said is None else dict(said))
    onnx.save(model, path)
    return path
