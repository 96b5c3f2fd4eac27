"""encoder.onnx of an edge bundle, run so that what lies between image and embedding can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from splitvla_cloud.split.geometry import VisionGeometry
from splitvla_shared.encoders import ENCODER_FILES, FP32
from splitvla_shared.errors import BundleError
from splitvla_shared.nouns import FloatArray, Image

_OUTPUT = "patches"


@dataclass(frozen=True, slots=True)
class Observed:
    """One frame in the graph, float32: each tower's pixels (3, S, S) and features (patches, dim), and the embedding."""

    pixels: tuple[FloatArray, ...]
    towers: tuple[FloatArray, ...]
    patches: FloatArray


class ObservedEncoder:
    """The graph with what enters each tower and what enters the projector as further outputs, added in memory.

    Nothing else of the graph is changed, and the weights are those of the file; the bundle stays as it is.
    """

    def __init__(self, bundle: Path, vision: VisionGeometry) -> None:
        """Raises BundleError when the graph can't be read, or is not laid out as `split` lays it out."""
        path = bundle / ENCODER_FILES[FP32]
        graph = onnx.load(str(path), load_external_data=False)
        self._pixels = [_pixels_of(graph, tower.prefix, path) for tower in vision.towers]
        self._features = _features(graph, path)
        for name in (*self._pixels, self._features):
            graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.resolve()))
        self._session: Any = ort.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._cuts = np.cumsum([tower.dim for tower in vision.towers])[:-1]

    def see(self, image: Image) -> Observed:
        """image: uint8 (S, S, 3)."""
        names = [_OUTPUT, self._features, *self._pixels]
        patches, features, *pixels = (batch[0] for batch in self._session.run(names, {"image": image[np.newaxis]}))
        return Observed(tuple(pixels), tuple(np.split(features, self._cuts, axis=-1)), patches)


def _pixels_of(model: Any, prefix: str, path: Path) -> str:
    """What the patch embedding of a tower takes."""
    weight = f"{prefix}patch_embed.proj.weight"
    for node in model.graph.node:
        if node.op_type == "Conv" and weight in node.input:
            return str(node.input[0])
    raise BundleError(f"{path} has no convolution with {weight}; split again")


def _features(model: Any, path: Path) -> str:
    """What the projector's first layer takes: the features of all towers side by side."""
    producers = {output: node for node in model.graph.node for output in node.output}
    for product in _inputs_beside(model, "projector.fc1.bias"):
        if product in producers and producers[product].op_type in ("MatMul", "Gemm"):
            return str(producers[product].input[0])
    raise BundleError(f"{path} has no layer projector.fc1; split again")


def _inputs_beside(model: Any, name: str) -> Iterator[str]:
    for node in model.graph.node:
        if name in node.input:
            yield from (other for other in node.input if other != name)
