"""The evaluation pipeline's pixels against TensorFlow's, and how a pipeline and a camera's turn are chosen.

tests/data/eval_images.npz was made by TensorFlow 2.21.0 on x86-64, from `input` and the side n of `resized`:
    jpeg    = tf.io.decode_image(tf.image.encode_jpeg(input), expand_animations=False, dtype=tf.uint8)
    resized = tf.cast(tf.clip_by_value(tf.round(tf.image.resize(jpeg, (n, n), "lanczos3", antialias=True)), 0, 255), u8)
    s = tf.reshape(tf.sqrt(0.9), (1,)); o = (1 - s) / 2; box = tf.stack([o, o, o + s, o + s], axis=1)
    crop    = tf.image.crop_and_resize(tf.image.convert_image_dtype(resized, tf.float32)[None], box, [0], (n, n))[0]
    cropped = tf.image.convert_image_dtype(tf.clip_by_value(crop, 0, 1), tf.uint8, saturate=True)
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from splitvla_shared.errors import ConfigError, ObservationError
from splitvla_shared.image_pipelines import ImagePipeline, parse_image_pipeline
from splitvla_shared.nouns import Image
from splitvla_shared.preprocess.eval_images import crop_center, jpeg_round_trip, resize_lanczos
from splitvla_shared.preprocess.image_pipelines import CAMERA_TRANSFORMS, build_pipeline
from splitvla_shared.preprocess.images import GRAY, load_image, to_square
from splitvla_shared.spec import Resize
from tests.fake_server import SPEC

GOLDEN = Path(__file__).parent / "data" / "eval_images.npz"
CASES = ("scene", "noise", "gradient", "enlarged", "same_size", "tall")


@pytest.fixture(scope="module")
def golden() -> Mapping[str, Image]:
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture
def frame() -> Image:
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


# --- against TensorFlow -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_the_jpeg_round_trip_is_tensorflows_bit_for_bit(golden: Mapping[str, Image], case: str) -> None:
    np.testing.assert_array_equal(jpeg_round_trip(golden[f"{case}/input"]), golden[f"{case}/jpeg"])


@pytest.mark.parametrize("case", CASES)
def test_lanczos_is_tensorflows(golden: Mapping[str, Image], case: str) -> None:
    """On these images without exception; about one sample in two million is a rounding tie that falls otherwise."""
    expected = golden[f"{case}/resized"]
    np.testing.assert_array_equal(resize_lanczos(golden[f"{case}/jpeg"], len(expected)), expected)


@pytest.mark.parametrize("case", CASES)
def test_the_centre_crop_is_tensorflows_bit_for_bit(golden: Mapping[str, Image], case: str) -> None:
    np.testing.assert_array_equal(crop_center(golden[f"{case}/resized"]), golden[f"{case}/cropped"])


def test_a_real_frame_comes_through_the_whole_pipeline_as_tensorflow_makes_it(
    golden: Mapping[str, Image], bridge_data: Path
) -> None:
    frame = load_image(bridge_data / "stills" / "goal_pnp.png")
    expected = np.asarray(PilImage.open(io.BytesIO(golden["goal_pnp.png/cropped_png"].tobytes())))
    np.testing.assert_array_equal(crop_center(resize_lanczos(jpeg_round_trip(frame), len(expected))), expected)


# --- any frame --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (2, 300), (300, 2), (56, 56), (57, 55)])
def test_any_frame_becomes_a_square(shape: tuple[int, int]) -> None:
    square = crop_center(resize_lanczos(jpeg_round_trip(np.full((*shape, 3), 77, np.uint8)), 56))
    assert square.shape == (56, 56, 3)
    assert square.dtype == np.uint8
    assert np.abs(square.astype(int) - 77).max() <= 1, "an even frame stays even"


@pytest.mark.parametrize("shape", [(65_501, 1), (1, 65_501)])
def test_a_side_that_no_jpeg_can_have_is_an_observation_error(shape: tuple[int, int]) -> None:
    with pytest.raises(ObservationError, match=r"65501.*65500"):
        jpeg_round_trip(np.zeros((*shape, 3), np.uint8))


def test_the_frame_itself_is_left_alone(frame: Image) -> None:
    before = frame.copy()
    for pipeline in ImagePipeline:
        for turn in CAMERA_TRANSFORMS:
            build_pipeline(pipeline, turn, SPEC, GRAY)(frame)
    np.testing.assert_array_equal(frame, before)


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_each_name_is_its_steps(frame: Image) -> None:
    size = SPEC.image_size
    evaluation = resize_lanczos(jpeg_round_trip(frame), size)
    expected = {
        "hf": to_square(frame, size, SPEC.resize, GRAY),
        "eval": evaluation,
        "eval-crop": crop_center(evaluation),
    }
    assert set(expected) == {pipeline.value for pipeline in ImagePipeline}
    for name, square in expected.items():
        np.testing.assert_array_equal(build_pipeline(parse_image_pipeline(name), "none", SPEC, GRAY)(frame), square)
    assert not np.array_equal(expected["hf"], expected["eval"])


@pytest.mark.parametrize("pipeline", list(ImagePipeline))
def test_rotate180_turns_the_frame_before_anything_else(pipeline: ImagePipeline, frame: Image) -> None:
    turned = build_pipeline(pipeline, "rotate180", SPEC, GRAY)(frame)
    upright = build_pipeline(pipeline, "none", SPEC, GRAY)(np.ascontiguousarray(frame[::-1, ::-1]))
    np.testing.assert_array_equal(turned, upright)
    assert not np.array_equal(turned, build_pipeline(pipeline, "none", SPEC, GRAY)(frame))


def test_a_letterbox_models_evaluation_squares_the_frame_itself(frame: Image) -> None:
    """The processor's padding then meets an image that is square already."""
    square = resize_lanczos(jpeg_round_trip(frame), 224)
    assert to_square(square, 224, Resize.LETTERBOX) is square


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'EVAL'.*hf, eval, eval-crop"):
        parse_image_pipeline("EVAL")
    with pytest.raises(ConfigError, match=r"'flip'.*none, rotate180"):
        build_pipeline(ImagePipeline.HF, "flip", SPEC, GRAY)


def test_without_its_decoder_eval_is_refused_at_start_and_hf_still_works(
    monkeypatch: pytest.MonkeyPatch, frame: Image
) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert build_pipeline(ImagePipeline.HF, "none", SPEC, GRAY)(frame).shape == (8, 8, 3)
    for pipeline in (ImagePipeline.EVAL, ImagePipeline.EVAL_CROP):
        with pytest.raises(ConfigError, match="pip install simplejpeg"):
            build_pipeline(pipeline, "none", SPEC, GRAY)
