"""Which frames calibration takes: stretches in a row, spread over everything that was given."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage

from splitvla_edge.calibrate.frames import find_sources, read_clips, select, spread
from splitvla_shared.errors import ConfigError, ObservationError
from splitvla_shared.nouns import Image

CLIP = Path(__file__).parent.parent / "benchmarks" / "data" / "widowx_can.mp4"


def write_images(folder: Path, count: int, *, still: bool = False) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        picture = np.full((8, 8, 3), 0 if still else index, np.uint8)
        PilImage.fromarray(picture).save(folder / f"{index:03}.png")
    return folder


def as_it_is(image: Image) -> Image:
    return image


@given(count=st.integers(0, 400), every=st.integers(1, 12), most=st.integers(16, 240))
def test_stretches_are_in_order_within_the_source_and_no_more_than_asked_for(count: int, every: int, most: int) -> None:
    stretches = spread(count, every, most)
    indices = [index for stretch in stretches for index in stretch]
    assert len(indices) <= most
    assert all(0 <= index < count for index in indices)
    assert len(indices) == len(set(indices))
    for stretch in stretches:
        assert 1 <= len(stretch) <= 8
        assert all(later - sooner == every for sooner, later in itertools.pairwise(stretch))
    if count:
        assert indices[0] == 0


def test_many_sources_share_the_frames_and_few_give_more_each(tmp_path: Path) -> None:
    sources = [write_images(tmp_path / f"{index:02}", 20) for index in range(6)]
    assert sum(selection.count for selection in select(sources, 5.0, 24)) == 24
    assert [selection.source.name for selection in select(sources, 5.0, 24)] == ["00", "02", "05"]
    assert [selection.count for selection in select(sources[:2], 5.0, 200)] == [20, 20]


def test_a_video_is_taken_at_the_rate_at_which_the_robot_will_send() -> None:
    (at_its_rate,) = select([CLIP], 5.0, 1000)
    (slower,) = select([CLIP], 1.0, 1000)
    assert slower.count == pytest.approx(at_its_rate.count / 5, abs=1)


def test_a_folder_of_folders_and_videos_is_a_source_each(tmp_path: Path) -> None:
    one, other = write_images(tmp_path / "all" / "b", 2), write_images(tmp_path / "all" / "c" / "d", 2)
    (tmp_path / "all" / "a.mp4").write_bytes(CLIP.read_bytes())
    assert find_sources([tmp_path / "all"]) == [tmp_path / "all" / "a.mp4", one, other]


def test_a_run_is_what_it_played(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    (tmp_path / "run").mkdir()
    record = {"settings": {"replay": {"frames": str(images)}}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert find_sources([tmp_path / "run"]) == [images]


@pytest.mark.parametrize(
    ("record", "reason"),
    [({"settings": {"replay": {"frames": None}}}, "holds no pictures; record the camera"), ({}, "can't be read")],
)
def test_a_run_without_pictures_is_refused_with_what_to_do(tmp_path: Path, record: object, reason: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=reason):
        find_sources([tmp_path])


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(ConfigError, match=r"--frames .*notes holds no images"):
        find_sources([tmp_path / "notes"])
    with pytest.raises(ConfigError, match=r"--frames .*nowhere is not there"):
        select([tmp_path / "nowhere"], 5.0, 16)
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(ConfigError, match=r"--frames .*broken\.mp4 is neither"):
        select([tmp_path / "broken.mp4"], 5.0, 16)


def test_a_frame_that_repeats_the_one_before_is_left_out(tmp_path: Path) -> None:
    still, moving = write_images(tmp_path / "still", 8, still=True), write_images(tmp_path / "moving", 8)
    counted: list[None] = []
    clips = list(read_clips(select([still, moving], 5.0, 16), as_it_is, lambda: counted.append(None)))
    assert [len(clip) for clip in clips] == [1, 8]
    assert len(counted) == 16


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 3)
    (folder / "001.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(ObservationError, match=r"001\.png"):
        list(read_clips(select([folder], 5.0, 16), as_it_is, lambda: None))
