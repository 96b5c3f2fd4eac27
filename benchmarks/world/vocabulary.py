"""Actions as tokens and instructions as ids, by the rules of openvla's action_tokenizer.py and of `split`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from benchmarks.checkpoint.sizes import ACTION_BINS, Sizes
from benchmarks.checkpoint.tokenizer import write_tokenizer
from splitvla_cloud.split.prompt import PROMPT_V02
from splitvla_edge.robots.metaworld.actions import DIMS, MAX_STEP_M
from splitvla_shared.actions import detokenize, parse_statistics
from splitvla_shared.nouns import ActionArray
from splitvla_shared.spec import INSTRUCTION_SLOT

STATISTICS_KEY = "splitvla_metaworld"
_WORDS = "ball button drawer faucet puck goal press"
_SPACE = "\u2581"


def action_statistics() -> Mapping[str, Any]:
    """`norm_stats` of one data set: the arm's limits, so that no bin is wasted on a motion that it can't make.

    The rotations' range is empty: whatever token is said for them means no rotation.
    """
    high = [MAX_STEP_M] * 3 + [0.0] * 3 + [1.0]
    low = [-MAX_STEP_M] * 3 + [0.0] * 3 + [0.0]
    middle = [0.0] * (DIMS - 1) + [0.5]
    action = {
        "mean": middle,
        "std": high,
        "min": low,
        "max": high,
        "q01": low,
        "q99": high,
        "mask": [True] * 6 + [False],
    }
    proprio = {name: [0.0] * DIMS for name in ("mean", "std", "min", "max", "q01", "q99")}
    return {STATISTICS_KEY: {"action": action, "proprio": proprio}}


def normalised(actions: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(..., 7) in the robot's units to [-1, 1]; the gripper, which is masked, stays as it is."""
    scaled = actions.copy()
    scaled[..., :3] /= MAX_STEP_M
    return np.clip(scaled, -1.0, 1.0)


def bins(actions: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Normalised actions to bins 0..255, by the reference's edges; token id = action_vocab_size - 1 - bin."""
    return np.digitize(actions, np.linspace(-1.0, 1.0, ACTION_BINS)) - 1


def write_words(path: Path, sizes: Sizes) -> None:
    """The tokenizer's files, with the words of the tasks as single pieces."""
    write_tokenizer(path, sizes, _WORDS)


def prompt_ids(folder: Path, instruction: str) -> list[int]:
    """Ids after BOS of the prompt for an instruction, with the lone space that ends it."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(PROMPT_V02.replace(INSTRUCTION_SLOT, instruction.lower())).ids
    suffix = tokenizer.token_to_id(_SPACE)
    assert suffix is not None  # `write_tokenizer` writes every character of the prompt
    return [*ids[1:], suffix]


def word_place(folder: Path, instruction: str, word: str) -> int:
    """Where in `prompt_ids` a word of the instruction stands. Raises ValueError where it is not one piece of it."""
    piece = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(_SPACE + word)
    if piece is None:
        raise ValueError(f"{word!r} is not one piece of the tokenizer in {folder}")
    return prompt_ids(folder, instruction).index(piece)


def unnormalised(tokens: npt.NDArray[np.int64], sizes: Sizes) -> ActionArray:
    """Token ids (..., 7) to actions in the robot's units, through the product's own code."""
    statistics = parse_statistics(action_statistics())[STATISTICS_KEY]
    flat = tokens.reshape(-1, DIMS)
    rows = [detokenize(row.tolist(), vocab_size=sizes.action_vocab_size, bins=ACTION_BINS).normalized for row in flat]
    return statistics.unnormalize(np.stack(rows)).reshape(tokens.shape)
