"""The server's memory of frames: by session, bounded, and whole frames only."""

from __future__ import annotations

import threading

import numpy as np

from splitvla_cloud.references import MAX_FRAMES, ReferenceStore
from splitvla_shared.codec.model import Reference

BYTES = 4 * 8 * 4  # of one camera's reference here


def frame(sequence: int, cameras: int = 1) -> tuple[Reference, ...]:
    return tuple(
        Reference.of(sequence, 0, np.full((8, 4), 100 * sequence + camera, np.int32)) for camera in range(cameras)
    )


def held(store: ReferenceStore, session: int, sequences: range) -> list[int]:
    return [sequence for sequence in sequences if store.get(session, sequence, 0) is not None]


def test_a_frame_is_found_by_session_sequence_and_camera_and_nowhere_else() -> None:
    store = ReferenceStore()
    store.add(7, 1, frame(1, cameras=2))
    found = store.get(7, 1, 1)
    assert found is not None
    assert found.numbers[0, 0] == 101
    assert [store.get(*key) for key in ((8, 1, 0), (7, 2, 0), (7, 1, 2))] == [None] * 3


def test_the_newest_frames_and_the_one_in_use_are_kept() -> None:
    store = ReferenceStore()
    for sequence in range(1, 4):
        store.add(7, sequence, frame(sequence))
    for sequence in range(4, 20):  # answers that the robot never got: it builds on frame 3 all the time
        store.add(7, sequence, frame(sequence), used=3)
    assert held(store, 7, range(1, 20)) == [3, 17, 18, 19]
    assert len(held(store, 7, range(1, 20))) == MAX_FRAMES
    store.add(7, 20, frame(20), used=18)
    assert held(store, 7, range(1, 21)) == [18, 19, 20], "what is older than the frame in use is of no use"


def test_a_session_s_bytes_are_bounded() -> None:
    store = ReferenceStore(session_bytes=2 * BYTES)
    for sequence in range(1, 10):
        store.add(7, sequence, frame(sequence))
    assert held(store, 7, range(1, 10)) == [8, 9]
    store.add(8, 1, frame(1, cameras=3))
    assert store.get(8, 1, 0) is None, "a frame larger than a session may be"
    assert store.size == 2 * BYTES


def test_of_all_sessions_the_longest_silent_goes_first() -> None:
    store = ReferenceStore(total_bytes=3 * BYTES)
    for session in (1, 2, 3):
        store.add(session, 1, frame(1))
    store.add(1, 2, frame(2), used=2)
    store.add(4, 1, frame(1))
    assert [session for session in (1, 2, 3, 4) if held(store, session, range(3))] == [1, 3, 4]


def test_a_thousand_sessions_and_a_frame_sent_twice_leave_memory_flat() -> None:
    store = ReferenceStore(total_bytes=50 * BYTES)
    for session in range(1000):
        for _ in range(2):
            store.add(session, 1, frame(1))
        assert store.size <= 50 * BYTES
    assert store.size == 50 * BYTES
    assert sum(store.get(session, 1, 0) is not None for session in range(1000)) == 50, "the account is the truth"


def test_threads_do_not_disturb_each_other_s_account() -> None:
    store = ReferenceStore(total_bytes=20 * BYTES)

    def work(session: int) -> None:
        for sequence in range(1, 200):
            store.add(session, sequence, frame(sequence), used=sequence - 1)

    threads = [threading.Thread(target=work, args=(session,)) for session in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [held(store, session, range(200)) for session in range(4)] == [[198, 199]] * 4
    assert store.size == 8 * BYTES
