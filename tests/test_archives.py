"""Reading archives: whatever a file claims to be, it is arrays or a ValueError."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitvla_shared.archives import read_arrays


def archive() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, numbers=np.arange(64, dtype=np.float32), text=np.str_("pick up the can"))
    return stream.getvalue()


GOOD = archive()


def test_arrays_come_back_by_name() -> None:
    found = read_arrays(io.BytesIO(GOOD))
    assert found["numbers"].tolist() == list(range(64))
    assert str(found["text"]) == "pick up the can"


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_flipped_bytes_give_arrays_or_a_value_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for at, value in changes:
        data[at] = value
    try:
        found = read_arrays(io.BytesIO(bytes(data)))
    except ValueError:
        return
    assert all(isinstance(array, np.ndarray) for array in found.values())


@pytest.mark.parametrize("length", range(0, len(GOOD), 7))
def test_a_cut_file_is_a_value_error(length: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_arrays(io.BytesIO(GOOD[:length]))


def test_objects_are_never_loaded() -> None:
    stream = io.BytesIO()
    np.savez(stream, thing=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        read_arrays(io.BytesIO(stream.getvalue()))


def test_a_lone_array_is_no_archive() -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    with pytest.raises(ValueError, match=r"."):
        read_arrays(io.BytesIO(stream.getvalue()))


def test_of_any_other_file_nobody_is_told_to_unpickle_it() -> None:
    for data in (b"", b"\x89PNG\r\n\x1a\n0123456789", b"\x80\x04K\x01."):
        with pytest.raises(ValueError, match=r"no numpy archive, or not whole"):
            read_arrays(io.BytesIO(data))
