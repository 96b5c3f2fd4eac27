"""What a served frame leaves behind: nothing, and without the help of the collector of cycles."""

from __future__ import annotations

import gc
import weakref

import numpy as np

from splitvla_cloud.engine.interface import Frame
from splitvla_cloud.worker import GpuWorker
from tests.cloud_fakes import FakeBackbone


class Patches(np.ndarray):
    """An array that shows when it is gone."""


def test_a_served_frame_s_patches_are_freed_at_once() -> None:
    worker = GpuWorker(FakeBackbone, 4)
    worker.start()
    worker.ready.result(10)
    patches = np.zeros((2, 4), np.float32).view(Patches)
    gone = weakref.ref(patches)
    gc.disable()
    try:
        future = worker.submit(Frame(1, 1, (1, 2), patches, 7, float("inf"), ()))
        assert len(future.result(10).tokens.ids) == 7
        worker.close()
        del patches, future
        assert gone() is None
    finally:
        gc.enable()
