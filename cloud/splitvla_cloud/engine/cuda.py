"""What only a CUDA device has: captured passes, and what torch may not trade away there.

Rules of this file: a pass is warmed up and captured on one stream of the engine's own, so that libraries allocate one
workspace for all of its graphs; all of them share one pool of memory, because only one runs at a time and its result is
read before the next one. The engine's device is made the current one: torch.cuda's streams are the current device's.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Libraries choose kernels, compile and allocate workspaces in the first calls, which can't be captured.
_WARM_UPS = 2
# The last is the system's, which torch's allocator on the host quotes.
_NO_MEMORY = ("out of memory", "ALLOC_FAILED", "Cannot allocate memory")

logger = logging.getLogger("splitvla.cloud")


def settle() -> None:
    """Set for the process what torch may trade away on CUDA. Call before the first pass.

    float32 is float32: TF32, which some container images switch on, keeps ten bits of a product's operands. bfloat16
    products are rounded once, and not at each of the parts that a kernel may split a sum into. cuDNN's attention, which
    torch 2.13 prefers on Hopper, builds a plan for each new shape, on the robot's time where a frame is not of a
    captured shape; the other kernels take any shape as it comes.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.enable_cudnn_sdp(False)


def out_of_memory(error: BaseException) -> bool:
    """Was memory short? torch has a type for its own allocator on a GPU only; any other's error is a text."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(sign in str(error) for sign in _NO_MEMORY)


def free_memory(error: BaseException) -> None:
    """Before a pass is tried again that failed for want of memory: the error's frames still hold what it had computed.

    What torch keeps for later goes back too, or the driver and the libraries would find no room.
    """
    if not out_of_memory(error):
        return
    traceback.clear_frames(error.__traceback__)
    try:
        torch.cuda.empty_cache()
    except RuntimeError:  # after a sticky error, or beside a capture that never ended; it fails nobody's frame
        logger.warning("memory that is not in use can't be given back", exc_info=True)


@dataclass(frozen=True, slots=True, eq=False)
class CudaGraph:
    """A captured pass. result: lies where every replay writes it; another graph's replay may overwrite it."""

    graph: torch.cuda.CUDAGraph
    result: torch.Tensor

    def replay(self) -> None:
        self.graph.replay()


class CudaGraphs:
    """Captures the passes of one engine on a device, such as "cuda:0". Its pool lives as long as its graphs do."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], torch.Tensor]) -> CudaGraph:
        """Raises RuntimeError where the pass holds what can't be captured or does not fit into memory."""
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(before)
        # The outer stream() brings the old stream back too where a capture fails, which torch.cuda.graph does not.
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    compute()
                # thread_local: what another thread's garbage collection frees meanwhile is no part of this capture.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    result = compute()
        finally:  # where a capture fails too: the next pass fills the buffers that the warm-ups may still read
            before.wait_stream(self._stream)
        return CudaGraph(graph, result)
