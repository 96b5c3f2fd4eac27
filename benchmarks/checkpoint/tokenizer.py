"""A byte-fallback BPE tokenizer made in code: the words of a robot's instructions, and ids for all the rest."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from benchmarks.checkpoint.configuration import write_json
from benchmarks.checkpoint.sizes import ACTION_BINS, Sizes

_FILLER, _ACTIONS = 0x20000, 0x4E00  # code points of pieces that no instruction holds
_LLAMA_SPACE_ID = 29871
_SPECIALS = ("<unk>", "<s>", "</s>")
_SPACE = "\u2581"
_WORDS = (
    "In: What action should the robot take to Out: put push pull pick place move lift open close turn slide stack wipe "
    "fold pour cover remove reach grasp up down left right on in into onto from of off near under the a and then spoon "
    "towel carrot plate pot pan cup can bowl block cube drawer door cloth table sink stove eggplant corn knife fork "
    "red green blue yellow orange black white small large top bottom front back middle coke apple banana lid bread"
)


def _pieces(action_vocab_size: int, words: str = "") -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in Llama-2's order: specials, bytes, merged pieces, single characters, actions last.

    A vocabulary as long as Llama-2's has the lone space where OpenVLA looks for it. words: further whole pieces.
    """
    merges: dict[tuple[str, str], None] = {}
    for word in (_WORDS + " " + words).split():
        spelled = _SPACE + word
        for end in range(1, len(spelled)):
            merges[spelled[:end], spelled[end]] = None
    alphabet = [_SPACE, "\n"] + [chr(code) for code in range(33, 127)]
    first = [*_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    named = [*first, *dict.fromkeys(left + right for left, right in merges), *alphabet]
    room = action_vocab_size - ACTION_BINS - len(named)
    if room < 0:
        raise SystemExit(f"action_vocab_size is {action_vocab_size}, at least {action_vocab_size - room} are needed")
    filler = [chr(_FILLER + index) for index in range(room)]
    pieces = [*named, *filler, *(chr(_ACTIONS + index) for index in range(ACTION_BINS))]
    if action_vocab_size > _LLAMA_SPACE_ID:
        space = pieces.index(_SPACE)
        pieces[space], pieces[_LLAMA_SPACE_ID] = pieces[_LLAMA_SPACE_ID], pieces[space]
    return {piece: index for index, piece in enumerate(pieces)}, list(merges)


def write_tokenizer(path: Path, sizes: Sizes, words: str = "") -> None:
    """words: instructions' words, apart by spaces, that are to be single pieces besides the usual ones."""
    vocab, merges = _pieces(sizes.action_vocab_size, words)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (*_SPECIALS, "<PAD>")])
    tokenizer.save(str(path / "tokenizer.json"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<PAD>"}
    write_json(path / "special_tokens_map.json", names)
    write_json(path / "added_tokens.json", {"<PAD>": sizes.pad_token_id})
    write_json(
        path / "tokenizer_config.json",
        {
            **names,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "model_max_length": 2048,
            "padding_side": "right",
            "tokenizer_class": "LlamaTokenizer",
        },
    )
