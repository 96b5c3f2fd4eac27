"""The checkpoint that the project makes for itself."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from benchmarks.tiny_checkpoint import Sizes, write_tiny_checkpoint

PROMPT = "In: What action should the robot take to {}?\nOut:"


def _bytes(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_tiny_checkpoint(tmp_path / "again", seed=0)
    assert _bytes(tmp_path / "again") == _bytes(tiny_checkpoint)


def test_another_seed_gives_other_weights(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_tiny_checkpoint(tmp_path / "other", seed=1)
    assert _bytes(tmp_path / "other")["model.safetensors"] != _bytes(tiny_checkpoint)["model.safetensors"]


def test_it_is_small(tiny_checkpoint: Path) -> None:
    assert sum(file.stat().st_size for file in tiny_checkpoint.iterdir()) < 3_000_000


def test_it_has_the_tensors_of_the_reference_layout(tiny_checkpoint: Path, reference_checkpoint: Path) -> None:
    """Same names up to the depth of the towers and of the language model."""
    names = []
    for path in (tiny_checkpoint, reference_checkpoint):
        with safe_open(path / "model.safetensors", "pt") as file:
            names.append({".".join("N" if part.isdigit() else part for part in key.split(".")) for key in file.keys()})  # noqa: SIM118
    assert names[0] == names[1]


def test_its_tokenizer_reads_prompts_as_llama_does(tiny_checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    encoded = tokenizer.encode(PROMPT.format("put spoon on towel"))
    assert encoded.tokens[:4] == ["<s>", "▁In:", "▁What", "▁action"]
    assert tokenizer.encode("é ").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>", "▁"]
    assert tokenizer.token_to_id("<PAD>") == 1024
    assert tokenizer.decode(encoded.ids) == PROMPT.format("put spoon on towel")


def test_the_module_writes_a_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.tiny_checkpoint", str(tmp_path / "out")]
    subprocess.run(command, check=True, cwd=Path(__file__).parent.parent, capture_output=True, timeout=60)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_vocabulary_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="action_vocab_size is 300"):
        write_tiny_checkpoint(tmp_path / "out", sizes=Sizes(action_vocab_size=300))


@pytest.fixture(scope="module")
def halves(tiny_bundles: Path) -> tuple[object, LlamaForCausalLM, Tokenizer]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tiny_bundles / "edge" / "encoder.onnx"))
    model = LlamaForCausalLM.from_pretrained(tiny_bundles / "cloud", dtype=torch.float32)
    return session, model, Tokenizer.from_file(str(tiny_bundles / "cloud" / "tokenizer.json"))


def _tokens(halves: tuple[object, LlamaForCausalLM, Tokenizer], image: np.ndarray, instruction: str) -> tuple[int, ...]:
    session, model, tokenizer = halves
    patches = torch.from_numpy(session.run(None, {"image": image[None]})[0])  # type: ignore[attr-defined]
    ids = [*tokenizer.encode(PROMPT.format(instruction)).ids, tokenizer.token_to_id("▁")]
    words = model.get_input_embeddings()(torch.tensor([ids]))
    with torch.no_grad():
        out = model.generate(
            inputs_embeds=torch.cat([words[:, :1], patches, words[:, 1:]], 1), max_new_tokens=7, do_sample=False
        )
    return tuple(int(token) for token in out[0])


def test_images_and_instructions_both_reach_the_answer(halves: tuple[object, LlamaForCausalLM, Tokenizer]) -> None:
    """Otherwise no test on this checkpoint could tell a dropped image from one that was used."""
    rng = np.random.default_rng(0)
    images = [np.full((224, 224, 3), level, np.uint8) for level in (0, 255)]
    images.append(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8))
    instructions = ("put spoon on towel", "open the drawer")
    answers = {_tokens(halves, image, text) for image in images for text in instructions}
    assert len(answers) == 6
    assert all(768 <= token < 1024 for answer in answers for token in answer)
