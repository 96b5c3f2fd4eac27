"""Images: the reference processor's pixels exactly, and one line for every file or array that is no image."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PilImage

from splitvla_shared.errors import ObservationError
from splitvla_shared.nouns import Image
from splitvla_shared.preprocess import images
from splitvla_shared.preprocess.images import check_image, load_image, to_square
from splitvla_shared.spec import Resize

DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def _gradient(height: int, width: int) -> Image:
    rows, columns = np.mgrid[0:height, 0:width]
    channels = (rows * 255 // max(height - 1, 1), columns * 255 // max(width - 1, 1), (rows + columns) % 256)
    return np.stack(channels, -1).astype(np.uint8)


def _normalized(square: Image) -> npt.NDArray[np.float32]:
    """The processor's normalisation: (6, S, S), channels 0-2 DINOv2, 3-5 SigLIP, float32 throughout."""
    unit = square.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    towers = [
        (unit - np.array(mean, np.float32)[:, None, None]) / np.array(std, np.float32)[:, None, None]
        for mean, std in ((DINO_MEAN, DINO_STD), (SIGLIP_MEAN, SIGLIP_STD))
    ]
    return np.concatenate(towers)


def test_naive_resizing_is_bit_exact_with_the_reference_processor(reference_checkpoint: Path) -> None:
    golden = np.load(reference_checkpoint / "golden.npz")
    names = golden["image_names"].tolist()
    for name, expected in zip(names, golden["pixel_values"], strict=True):
        square = to_square(check_image(golden[f"image/{name}"]), 224, Resize.NAIVE)
        np.testing.assert_array_equal(_normalized(square), expected, err_msg=name)
    assert len(names) > 1


@pytest.mark.parametrize("resize", list(Resize))
def test_an_image_of_the_right_size_is_left_untouched(resize: Resize) -> None:
    image = _gradient(224, 224)
    assert to_square(image, 224, resize) is image


@pytest.mark.parametrize("shape", [(480, 640), (180, 320), (1, 1), (2, 300), (300, 2), (101, 100), (100, 101)])
@pytest.mark.parametrize("resize", list(Resize))
def test_any_frame_becomes_a_square(shape: tuple[int, int], resize: Resize) -> None:
    square = to_square(_gradient(*shape), 56, resize)
    assert square.shape == (56, 56, 3)
    assert square.dtype == np.uint8


def test_letterbox_pads_the_short_side_evenly_with_the_fill() -> None:
    image = np.full((100, 200, 3), 255, np.uint8)
    square = to_square(image, 64, Resize.LETTERBOX, (10, 20, 30))
    assert (square[:12] == (10, 20, 30)).all(), "bicubic reaches two pixels into the padding, no further"
    assert (square[-12:] == (10, 20, 30)).all()
    assert (square[20:44] == 255).all()
    np.testing.assert_array_equal(square, square[::-1])


def test_letterbox_is_pad_then_resize_then_centre_crop() -> None:
    """An odd difference: (101, 300) is padded by int(99.5) to (299, 300); the short side becomes 64."""
    image = _gradient(101, 300)
    padded = np.full((299, 300, 3), 127, np.uint8)
    padded[99:200] = image
    scaled = PilImage.fromarray(padded).resize((int(64 * 300 / 299), 64), PilImage.Resampling.BICUBIC)
    np.testing.assert_array_equal(to_square(image, 64, Resize.LETTERBOX), np.asarray(scaled)[:, :64])


@pytest.mark.parametrize(("mode", "shape"), [("L", (8, 9)), ("RGBA", (8, 9, 4)), ("RGB", (8, 9, 3))])
def test_gray_and_rgba_are_converted_as_pillow_converts_them(mode: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(check_image(array), np.asarray(PilImage.fromarray(array).convert("RGB")))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 4), np.uint8)[:, :, :1],
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((), np.uint8),
        [[1, 2], [3, 4]],
    ],
    ids=lambda array: f"{getattr(array, 'dtype', 'list')}-{getattr(array, 'shape', '')}",
)
def test_an_array_that_is_no_image_is_refused(array: Any) -> None:
    with pytest.raises(ObservationError, match="image"):
        check_image(array)


@pytest.mark.parametrize("shape", [(1, 8193, 3), (8193, 1, 3), (1, 8193), (8193, 1), (1, 8193, 4)])
def test_an_image_with_a_side_that_no_camera_has_is_refused(shape: tuple[int, ...]) -> None:
    """Few pixels, but a letterbox pads them to a square, and a resize's first pass widens them 224-fold."""
    with pytest.raises(ObservationError, match=r"8193.*over 8,192 pixels long.*scale it down"):
        check_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(2, 8192, 3), (8192, 2, 3)])
def test_an_image_with_the_longest_side_is_taken(shape: tuple[int, ...]) -> None:
    image = check_image(np.zeros(shape, np.uint8))
    assert to_square(image, 56, Resize.NAIVE).shape == (56, 56, 3)


@pytest.mark.parametrize("name", ["frame.png", "frame.bmp", "frame.ppm"])
def test_a_file_reads_back_as_its_pixels(tmp_path: Path, name: str) -> None:
    image = _gradient(30, 40)
    PilImage.fromarray(image).save(tmp_path / name)
    np.testing.assert_array_equal(load_image(tmp_path / name), image)


def test_a_jpeg_is_rgb(tmp_path: Path) -> None:
    PilImage.fromarray(_gradient(16, 16)[:, :, 0]).save(tmp_path / "gray.jpg")
    assert load_image(tmp_path / "gray.jpg").shape == (16, 16, 3)


def _png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header declares a picture of any size."""

    def block(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", zlib.compress(b"\0")) + block(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 20_000, 100_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(_png_that_claims(side, side))
    assert side * side > images.MAX_PIXELS
    with pytest.raises(ObservationError, match=r"bomb\.png.*pixels"):
        load_image(bomb)


def _write_nothing(path: Path) -> None: ...


def _write_text(path: Path) -> None:
    path.write_text("not an image")


def _write_half_a_png(path: Path) -> None:
    PilImage.fromarray(_gradient(64, 64)).save(path, "PNG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _write_a_broken_png(path: Path) -> None:
    PilImage.fromarray(_gradient(64, 64)).save(path, "PNG")
    data = bytearray(path.read_bytes())
    data[60:80] = bytes(20)
    path.write_bytes(bytes(data))


def _write_a_header_only(path: Path) -> None:
    path.write_bytes(_png_that_claims(50, 50))


def _write_sixteen_bits(path: Path) -> None:
    PilImage.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path, "PNG")


def _write_postscript(path: Path) -> None:
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (_write_nothing, "No such file"),
        (Path.mkdir, "directory"),
        (_write_text, "not an image"),
        (_write_half_a_png, "truncated"),
        (_write_a_broken_png, "."),
        (_write_a_header_only, "truncated"),
        (_write_sixteen_bits, "8 bits a channel"),
        (_write_postscript, "not an image"),
    ],
)
def test_a_file_that_is_no_image_is_one_line_with_its_name_and_the_reason(
    tmp_path: Path, write: Any, reason: str
) -> None:
    path = tmp_path / "frame.png"
    write(path)
    with pytest.raises(ObservationError, match=reason) as caught:
        load_image(path)
    assert "frame.png" in str(caught.value)
    assert "\n" not in str(caught.value)
