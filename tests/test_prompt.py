"""The prompt's token ids are those of the reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from splitvla_cloud.prompt import Prompt
from splitvla_shared.errors import BundleError
from tests.cloud_fakes import SPEC, fake_bundle

TEMPLATE = "In: What action should the robot take to {instruction}?\nOut:"


def reference_prompt(checkpoint: Path, template: str = TEMPLATE) -> Prompt:
    loaded = Prompt.load(checkpoint, SPEC)
    return Prompt(loaded.tokenizer, template, 29871)


def test_text_and_ids_equal_the_references(reference_checkpoint: Path) -> None:
    prompt = reference_prompt(reference_checkpoint)
    golden = np.load(reference_checkpoint / "golden.npz")
    assert len(golden["instructions"])
    for index, instruction in enumerate(golden["instructions"]):
        assert prompt.text(str(instruction)) == golden["prompts"][index]
        assert list(prompt.ids(str(instruction))) == golden[f"input_ids_llm/{index}"].tolist()


def test_a_prompt_that_ends_in_the_suffix_token_is_left_alone(reference_checkpoint: Path) -> None:
    """A template with a space at its end already ends in 29871."""
    ids = reference_prompt(reference_checkpoint, TEMPLATE + " ").ids("lift the cup")
    assert ids[-1] == 29871
    assert ids[-2] != 29871


def test_the_instruction_is_lower_cased_and_not_otherwise_touched(tmp_path: Path) -> None:
    prompt = Prompt.load(fake_bundle(tmp_path).path, SPEC)
    assert prompt.text("  Grasp IT. ") == "do   grasp it.  now"
    assert prompt.ids("GRASP") == (1, 3, 5, 4, 9)


@pytest.mark.parametrize("content", ["", "{}", "not json", None])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json .*the checkpoint's own there"):
        Prompt.load(tmp_path, SPEC)


def test_a_tokenizer_without_bos_is_refused(tmp_path: Path) -> None:
    """The patches go behind the first id; without BOS they would split the text."""
    file = fake_bundle(tmp_path).path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    with pytest.raises(BundleError, match="no BOS"):
        Prompt.load(tmp_path, SPEC)
