"""What ONNX Runtime raises: classes that share no base below Exception, and messages of many lines."""

from __future__ import annotations

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

ORT_ERRORS: tuple[type[Exception], ...] = (
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


def one_line(error: Exception) -> str:
    """The message, bounded, fit for a log."""
    return " ".join(str(error).split())[:300]
