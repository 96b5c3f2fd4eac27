"""The vision encoder and projector: encoder.onnx of the edge bundle in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from splitvla_shared.bundle import Bundle
from splitvla_shared.errors import BundleError, ConfigError
from splitvla_shared.nouns import FloatArray, Image

ENCODER_FILE = "encoder.onnx"
CPU = ("CPUExecutionProvider",)

# ONNX Runtime's exceptions share no base below Exception.
_ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
)


class OnnxEncoder:
    """One ONNX Runtime session, warmed up. Owned by the perception process; `embed` from one thread at a time."""

    def __init__(self, bundle: Bundle, threads: int | None = None, providers: Sequence[str] = CPU) -> None:
        """Load and check `encoder.onnx`. threads: cores for one inference, None for all physical cores.

        Raises BundleError when the graph can't be loaded, is not this spec's, or fails on a black frame; ConfigError
        when a provider is not in this build of ONNX Runtime.
        """
        if threads is not None and threads < 1:
            raise ConfigError(f"encoder threads is {threads}; expected at least 1, or none for all physical cores")
        self._spec = bundle.spec
        self._path = bundle.path / ENCODER_FILE
        self._session = _open_session(self._path, threads, providers)
        self._check_graph()
        # The first run allocates the arena and takes several times as long as the next: not on a moving robot.
        size = self._spec.image_size
        self.embed(np.zeros((size, size, 3), np.uint8))

    def embed(self, image: Image) -> FloatArray:
        """uint8 RGB (image_size, image_size, 3) to float32 (patches, embed_dim), finite.

        Raises BundleError when ONNX Runtime fails or the result is not finite: no uint8 image is to blame for that,
        only a graph whose numeric type overflows (float16) or whose weights are damaged.
        """
        size = self._spec.image_size
        if image.shape != (size, size, 3) or image.dtype != np.uint8:
            raise ValueError(f"image is {image.dtype} {image.shape}; the encoder takes uint8 ({size}, {size}, 3)")
        try:
            (batch,) = self._session.run(["patches"], {"image": np.ascontiguousarray(image)[np.newaxis]})
        except _ORT_ERRORS as error:
            raise BundleError(f"{self._path}: the encoder failed: {_one_line(error)}") from error
        patches: FloatArray = batch[0]
        if not np.isfinite(patches).all():
            raise BundleError(f"{self._path}: the embedding is not finite; split again with a float32 encoder")
        return patches

    def _check_graph(self) -> None:
        spec = self._spec
        size = spec.image_size
        expected = {
            "inputs": [("image", "tensor(uint8)", [1, size, size, 3])],
            "outputs": [("patches", "tensor(float)", [1, spec.patches, spec.embed_dim])],
        }
        found = {
            "inputs": [(node.name, node.type, node.shape) for node in self._session.get_inputs()],
            "outputs": [(node.name, node.type, node.shape) for node in self._session.get_outputs()],
        }
        for side, wanted in expected.items():
            if found[side] != wanted:
                raise BundleError(f"{self._path}: {side} are {found[side]}, spec.json says {wanted}; split again")


def _open_session(path: Path, threads: int | None, providers: Sequence[str]) -> Any:
    available = ort.get_available_providers()
    missing = [name for name in providers if name not in available]
    if missing or not providers:
        raise ConfigError(f"encoder providers {missing} are not in this onnxruntime; it has {', '.join(available)}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Spinning threads would take the cores from the control process between two frames.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if not path.is_file():
        raise BundleError(f"{path.parent} is not whole: {path.name} is missing; copy it again or split again")
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except _ORT_ERRORS as error:
        raise BundleError(f"{path} can't be loaded: {_one_line(error)}; copy it again or split again") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
