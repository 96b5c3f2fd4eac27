"""Numpy archives of arrays, read without belief in what they claim to be; no pickle is ever loaded."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from typing import IO, Any

import numpy as np
import numpy.typing as npt

# What numpy, zipfile and zlib raise on a file that is none; NotImplementedError is a RuntimeError.
_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, OverflowError, RuntimeError, MemoryError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)


def read_arrays(stream: IO[bytes]) -> dict[str, npt.NDArray[Any]]:
    """Every array of what `np.savez` wrote, by its name. Raises ValueError, and nothing else, for any other file."""
    try:
        if not zipfile.is_zipfile(stream):  # of which numpy would say how to have it unpickled
            raise ValueError("it is no numpy archive, or not whole")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except _UNREADABLE as error:
        raise ValueError((str(error) or type(error).__name__)[:200]) from error
