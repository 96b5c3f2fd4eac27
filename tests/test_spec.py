"""ModelSpec: its fingerprint, its strict JSON, and the differences between two of them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from splitvla_shared.errors import BundleError
from splitvla_shared.spec import ModelSpec, Resize
from tests.specs import make_spec

CHANGES: dict[str, Any] = {
    "vision_sha256": "0" * 64,
    "language_sha256": "0" * 64,
    "tokenizer_sha256": "0" * 64,
    "statistics_sha256": "0" * 64,
    "patches": 257,
    "embed_dim": 97,
    "image_size": 225,
    "resize": Resize.LETTERBOX,
    "action_vocab_size": 32001,
    "action_bins": 255,
    "max_action_dims": 8,
    "chunk_length": 2,
    "prompt_template": "{instruction}",
    "suffix_token_id": 29870,
    "max_cameras": 2,
}


def test_every_field_but_the_name_takes_part_in_the_fingerprint() -> None:
    assert {*CHANGES, "fingerprint", "name", "codec_sha256"} == {field.name for field in dataclasses.fields(ModelSpec)}
    changes = CHANGES | {"codec_sha256": "e" * 64}
    fingerprints = {make_spec(**{name: value}).fingerprint for name, value in changes.items()}
    assert len(fingerprints | {make_spec().fingerprint}) == len(changes) + 1


def test_codec_tables_are_written_only_where_there_are_some() -> None:
    """Bundles that were split before there was a codec keep their fingerprint and their spec.json."""
    assert "codec_sha256" not in make_spec().to_json()
    calibrated = make_spec(codec_sha256="e" * 64)
    assert ModelSpec.from_json(calibrated.to_json()) == calibrated
    assert any(line.startswith("codec_sha256:") for line in calibrated.differences(make_spec()))


def test_a_renamed_model_is_the_same_model() -> None:
    """The name is the checkpoint's folder: two machines may have split copies that are called differently."""
    renamed = make_spec(name="renamed")
    assert renamed.fingerprint == make_spec().fingerprint
    assert renamed.differences(make_spec()) == []


def test_the_fingerprint_is_the_same_on_every_machine() -> None:
    """Golden: another value means that bundles split before no longer match those split after."""
    assert make_spec().fingerprint == "9941f87ff9ee2a52933438e8059c3e2c44d1618c26638c1833d3f0df2df6e5d2"
    assert make_spec().sealed() == make_spec()


def test_json_gives_the_same_spec_back() -> None:
    spec = make_spec(resize=Resize.LETTERBOX, name="naïve ✓")
    text = json.dumps(spec.to_json())
    assert '"LETTERBOX"' in text
    assert ModelSpec.from_json(json.loads(text)) == spec


@pytest.mark.parametrize("field", [*CHANGES, "fingerprint"])
def test_json_without_a_field_is_refused_by_name(field: str) -> None:
    data = make_spec().to_json()
    del data[field]
    with pytest.raises(BundleError, match=field):
        ModelSpec.from_json(data)


def test_json_with_an_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(BundleError, match="colour"):
        ModelSpec.from_json(make_spec().to_json() | {"colour": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [("patches", "256"), ("patches", True), ("patches", 256.0), ("name", 5), ("name", None), ("resize", 1)],
)
def test_json_with_a_value_of_another_type_is_refused(field: str, value: Any) -> None:
    with pytest.raises(BundleError, match=f"{field} is {value!r}, expected"):
        ModelSpec.from_json(make_spec().to_json() | {field: value})


def test_json_with_an_unknown_resize_is_refused() -> None:
    with pytest.raises(BundleError, match="resize is 'CROP', expected one of"):
        ModelSpec.from_json(make_spec().to_json() | {"resize": "CROP"})


@pytest.mark.parametrize("change", [{"embed_dim": 128}, {"fingerprint": "0" * 64}])
def test_an_edited_json_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="fingerprint does not match"):
        ModelSpec.from_json(make_spec().to_json() | change)


@pytest.mark.parametrize(
    "change",
    [
        {"patches": 0},
        {"patches": 1 << 20},
        {"embed_dim": -1},
        {"image_size": 0},
        {"action_bins": 1},
        {"action_vocab_size": 255},
        {"max_action_dims": 65},
        {"chunk_length": 0},
        {"suffix_token_id": -1},
        {"max_cameras": 9},
    ],
)
def test_a_spec_out_of_bounds_is_refused(change: dict[str, int]) -> None:
    ((field, value),) = change.items()
    with pytest.raises(BundleError, match=f"{field} is {value}, expected"):
        make_spec(**change)


@pytest.mark.parametrize("template", ["", "do it", "{instruction} {instruction}"])
def test_a_prompt_template_must_hold_the_instruction_once(template: str) -> None:
    with pytest.raises(BundleError, match="prompt_template"):
        make_spec(prompt_template=template)


def test_two_equal_specs_have_no_differences() -> None:
    assert make_spec().differences(make_spec()) == []


def test_each_difference_is_named_with_both_values() -> None:
    mine, theirs = make_spec(embed_dim=4096), make_spec(embed_dim=896)
    lines = mine.differences(theirs)
    assert lines[0] == "embed_dim: 4096 here, 896 there"
    assert [line.partition(":")[0] for line in lines] == ["embed_dim", "fingerprint"]
