"""Capturing passes, with a recorder in torch.cuda's place: what is called, on which device and stream, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from splitvla_cloud.backbone import Backbone, load_model
from splitvla_cloud.engine.cuda import CudaGraphs, settle
from splitvla_shared.bundle import open_bundle


class SideStream:
    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def wait_stream(self, other: SideStream) -> None:
        self.recorder.calls.append(f"{self.name} waits for {other.name}")


class RecordedGraph:
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def replay(self) -> None:
        self.recorder.calls.append("replay")


class Recorder:
    """Stands for what of torch.cuda a capture uses; `calls` are in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: bool = False) -> None:
        """broken: ending a capture fails, as torch.cuda.graph does before it brings the old stream back."""
        self.calls: list[str] = []
        self._broken = broken
        for name in ("Stream", "current_stream", "graph_pool_handle", "CUDAGraph", "device", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def Stream(self, device: str) -> SideStream:  # noqa: N802 - torch's names
        return SideStream(self, f"side stream of {device}")

    def current_stream(self, device: str) -> SideStream:
        return SideStream(self, f"current stream of {device}")

    def graph_pool_handle(self) -> str:
        self.calls.append("new pool")
        return "pool"

    def CUDAGraph(self) -> RecordedGraph:  # noqa: N802
        return RecordedGraph(self)

    @contextmanager
    def _within(self, what: str) -> Iterator[None]:
        self.calls.append(f"enter {what}")
        try:
            yield
        finally:
            self.calls.append(f"leave {what}")

    def device(self, device: str) -> object:
        return self._within(device)

    def stream(self, stream: SideStream) -> object:
        return self._within(stream.name)

    def graph(self, graph: RecordedGraph, *, pool: str, stream: SideStream, capture_error_mode: str) -> object:
        return self._capture(f"capture in {pool} on {stream.name}, {capture_error_mode}")

    @contextmanager
    def _capture(self, what: str) -> Iterator[None]:
        with self._within(what):
            try:
                yield
            finally:
                if self._broken:
                    raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")


def test_a_pass_is_warmed_up_and_captured_on_one_stream_of_the_engines_device(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, result = Recorder(monkeypatch), torch.zeros(1)

    def compute() -> torch.Tensor:
        recorder.calls.append("compute")
        return result

    graphs = CudaGraphs("cuda:1")
    captured = graphs(compute)
    captured.replay()
    graphs(compute)
    assert captured.result is result
    side = "side stream of cuda:1"
    capture = f"capture in pool on {side}, thread_local"
    once = [
        f"{side} waits for current stream of cuda:1",
        *("enter cuda:1", f"enter {side}", "compute", "compute"),
        *(f"enter {capture}", "compute", f"leave {capture}", f"leave {side}", "leave cuda:1"),
        f"current stream of cuda:1 waits for {side}",
    ]
    assert recorder.calls == ["new pool", *once, "replay", *once]


def test_a_failed_capture_leaves_the_old_stream_current(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)

    def compute() -> torch.Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        CudaGraphs("cuda:0")(compute)
    assert recorder.calls[-3:-1] == ["leave side stream of cuda:0", "leave cuda:0"]
    # What follows writes into the buffers that the warm-ups read.
    assert recorder.calls[-1] == "current stream of cuda:0 waits for side stream of cuda:0"


def test_where_a_capture_can_t_even_be_ended_the_engine_serves_without(
    monkeypatch: pytest.MonkeyPatch, tiny_bundles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = load_model(open_bundle(tiny_bundles / "cloud", "cloud"), "fp32", "cpu")
    backbone = Backbone(model, "fp32", "cpu", tokens=512)
    patches = np.random.default_rng(0).standard_normal((256, 128), dtype=np.float32)
    expected = backbone.full_answer((1, 5, 6), patches, 7)
    recorder = Recorder(monkeypatch, broken=True)
    assert backbone.engine.capture([320], 7, CudaGraphs("cuda:0")) == 0
    assert "run without CUDA graphs" in caplog.text
    assert recorder.calls[-3:-1] == ["leave side stream of cuda:0", "leave cuda:0"]
    assert backbone.full_answer((1, 5, 6), patches, 7) == expected


def test_engines_share_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool whose graphs are gone can't be captured into again, and one of another device neither."""
    recorder = Recorder(monkeypatch)
    CudaGraphs("cuda:0")
    CudaGraphs("cuda:1")
    assert recorder.calls == ["new pool", "new pool"]


def test_float32_stays_float32_and_bfloat16_is_rounded_once() -> None:
    """Whatever a container image or another library has set."""
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), matmul.allow_bf16_reduced_precision_reduction
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    try:
        torch.set_float32_matmul_precision("high")
        settle()
        assert torch.get_float32_matmul_precision() == "highest"
        assert not matmul.allow_bf16_reduced_precision_reduction
        assert not torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    finally:
        torch.set_float32_matmul_precision(before[0])
        matmul.allow_bf16_reduced_precision_reduction = before[1]
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
