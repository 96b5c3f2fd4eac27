"""What a pass on the CPU frees stays with the process for the next pass."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h. The threshold is the largest that it takes; beyond it a matrix is worth its page faults.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAPPED_BYTES, _KEPT_BYTES = 32 * 2**20, 2**30


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, for the whole process; False where the C library is another one.

    By default it gives the top of its heap back to the system. The intermediate results of a pass over several robots
    are a few MB each, so that every pass had thousands of pages mapped and zeroed anew.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Both or neither: setting one of them stops glibc from adapting the other.
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
