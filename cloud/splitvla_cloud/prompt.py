"""Instruction to token ids, straight from the bundle's tokenizer.json.

Source: `get_openvla_prompt` (deploy.py of openvla) for the text, `predict_action` (modeling_prismatic.py of the
checkpoint) for the suffix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from splitvla_shared.errors import BundleError
from splitvla_shared.spec import INSTRUCTION_SLOT, ModelSpec

TOKENIZER_FILE = "tokenizer.json"


def load_tokenizer(path: Path) -> Tokenizer:
    """`path`/tokenizer.json, of a bundle or of a checkpoint. Raises BundleError as `Prompt.load` does."""
    file = path / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} can't be read: {error}; put the checkpoint's own there") from error
    except Exception as error:  # the tokenizers library raises nothing narrower, whatever is wrong
        raise BundleError(f"{file} is not a tokenizer: {error}; put the checkpoint's own there") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.encode("x").special_tokens_mask[:1] != [1]:
        raise BundleError(
            f"{file} puts no BOS in front of a prompt, so that the patches would land in the wrong place; take the"
            " checkpoint's own, saved with add_bos_token, and split again"
        )
    return tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """The model's prompt as a function of the instruction; stateless, safe to call from several threads."""

    tokenizer: Tokenizer
    template: str
    suffix_token_id: int

    @classmethod
    def load(cls, path: Path, spec: ModelSpec) -> Prompt:
        """Read `path`/tokenizer.json. Raises BundleError when it is no tokenizer, or one that adds no BOS in front."""
        return cls(load_tokenizer(path), spec.prompt_template, spec.suffix_token_id)

    def text(self, instruction: str) -> str:
        """What the model is asked, lower-cased exactly as the reference does it and not otherwise cleaned."""
        return self.template.replace(INSTRUCTION_SLOT, instruction.lower())

    def ids(self, instruction: str) -> tuple[int, ...]:
        """Token ids with BOS first and the suffix token last; the patches go behind the BOS."""
        ids = tuple(self.tokenizer.encode(self.text(instruction)).ids)
        return ids if ids[-1] == self.suffix_token_id else (*ids, self.suffix_token_id)
