"""Memory that a pass frees on a CPU is there for the next pass, without the system mapping it anew."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Several results of 4 MB, as of a layer over eight robots' rows, allocated and freed ten times; pages of the last time.
_PASSES = """
import resource, sys
import numpy as np
from splitvla_cloud.engine.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    results = [np.ones(2**20, np.float32) for _ in range(8)]
    del results
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", _PASSES, how], check=True, capture_output=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc can be told to keep memory")
def test_results_that_were_freed_cost_no_pages_again() -> None:
    assert faults("keep") < 200
    assert faults("as it is") > 2000
