"""The recorded frames that demo, benchmarks and tests play; data/README.md says where they come from."""

from __future__ import annotations

from pathlib import Path

from splitvla_edge.robots.replay import open_source
from splitvla_shared.nouns import Image

CLIP = Path(__file__).parent / "data" / "widowx_can.mp4"
INSTRUCTION = "put the can next to the pot"


def read_frames(path: Path = CLIP) -> list[Image]:
    """All frames of a folder of images or a video, uint8 RGB."""
    source = open_source(path)
    frames = [source.read(index) for index in range(source.count)]
    source.close()
    return frames
