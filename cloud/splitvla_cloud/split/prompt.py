"""Which prompt a checkpoint was trained with, and the token that ends it.

Source: `get_openvla_prompt` in openvla's deploy.py; `predict_action` in modeling_prismatic.py for the suffix.
"""

from __future__ import annotations

from splitvla_cloud.split.fields import Fields
from splitvla_shared.errors import CheckpointError

PROMPT_V02 = "In: What action should the robot take to {instruction}?\nOut:"
PROMPT_V01 = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: What action should the robot take to {instruction}? ASSISTANT:"
)
_LLAMA_SPACE_ID = 29871
_SPACE = "\u2581"


def prompt_template(config: Fields, name: str, towers: int) -> str:
    """v0.1 models speak Vicuna's chat format, all later ones the plain form.

    The reference asks whether the path holds "v01", which a fine-tune of a later model may be called too. So where the
    config names its language backbone (v0.1's is vicuna-v15-7b), that alone decides; where it does not, v0.1 is what
    the folder calls so, and what has a single vision tower.
    """
    backbone = config.text("llm_backbone_id", "")
    vicuna = "vicuna" in backbone if backbone else towers == 1 or "v01" in name
    return PROMPT_V01 if vicuna else PROMPT_V02


def suffix_token_id(tokenizer: Fields, action_vocab_size: int) -> int:
    """The lone space piece that training put between prompt and action: 29871 wherever Llama-2's vocabulary is.

    Raises CheckpointError when a smaller vocabulary has no such piece.
    """
    if action_vocab_size > _LLAMA_SPACE_ID:
        return _LLAMA_SPACE_ID
    vocab = tokenizer.table("model").table("vocab").data
    if not isinstance(vocab.get(_SPACE), int):
        raise CheckpointError(f"{tokenizer.where}: the vocabulary has no piece {_SPACE!r}, which has to end the prompt")
    return int(vocab[_SPACE])
